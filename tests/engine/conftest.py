"""Engines for the tests: each configuration runs once a session, in its own processes. Knows no expectation."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from tests.engine.configurations import CONFIGURATIONS
from tests.engine.golden import PACK, Arrays

ROOT = Path(__file__).parents[2]
ENGINE_TIMEOUT = 540  # seconds for start and passes: a loaded machine of two cores takes four times an idle one's
GROUP_TIMEOUT = 15  # seconds for the processes of a finished engine to go

LOCAL = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

RunEngine = Callable[[str], Arrays]


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("golden_checkpoint")
    subprocess.run([sys.executable, PACK / "make_checkpoint.py", target], check=True, capture_output=True, timeout=60)
    return target


@pytest.fixture(scope="session")
def quantized(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A configuration's checkpoint."""
    made: dict[tuple[str, ...], Path] = {(): golden_checkpoint}

    def make(name: str) -> Path:
        asked = CONFIGURATIONS[name].quantized
        if asked not in made:
            made[asked] = tmp_path_factory.mktemp("quantized") / name
            command = [sys.executable, "-m", "kimi_serve.cli", "quantize", golden_checkpoint, made[asked], *asked]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        return made[asked]

    return make


@pytest.fixture(scope="session")
def results(quantized: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> RunEngine:
    """What a configuration's engine gave, by pass/case/what; the engine has ended. Workers of one session share it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "results"
    folder.mkdir(exist_ok=True)
    done: dict[str, Arrays] = {}

    def run(name: str) -> Arrays:
        if name not in done:
            target = folder / f"{name}.npz"
            with FileLock(folder / f"{name}.lock"):
                if not target.exists():
                    start(name, target)
            with np.load(target) as file:
                done[name] = dict(file)
        return done[name]

    def start(name: str, target: Path) -> None:
        partial = target.with_suffix(".partial.npz")
        ended = run_alone(
            ["-m", "tests.engine.driver", name, str(quantized(name)), str(partial)], CONFIGURATIONS[name].environment
        )
        assert ended.returncode == 0, f"engine {name} failed:\n{ended.stdout[-6000:]}"
        partial.rename(target)

    return run


def run_alone(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process group; no process of the group outlives this call."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | LOCAL | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=ENGINE_TIMEOUT)
        assert _group_ends(process.pid), "the engine left processes behind"
    finally:
        _kill_group(process.pid)
        process.wait()
    return subprocess.CompletedProcess(arguments, process.returncode, output)


def _group_ends(group: int) -> bool:
    deadline = time.monotonic() + GROUP_TIMEOUT
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="session")
def amx() -> bool:
    """Whether vLLM has a latent backend with chunked prefill and prefix caching for this CPU."""
    return torch.cpu._is_amx_tile_supported()
