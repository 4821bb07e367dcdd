"""Engines for the tests: each configuration runs once a session, in its own processes. Knows no expectation."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from tests.engine import adapter_sets
from tests.engine.configurations import CONFIGURATIONS, SHARED
from tests.engine.golden import PACK, Arrays

ROOT = Path(__file__).parents[2]
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
def adapters(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A configuration's adapters: folders `served` and `refused`."""
    made: dict[bool, Path] = {}

    def make(name: str) -> Path:
        absorbed = not CONFIGURATIONS[name].expanded
        if absorbed not in made:
            made[absorbed] = tmp_path_factory.mktemp("adapters")
            adapter_sets.write(made[absorbed], golden_checkpoint, absorbed=absorbed)
        return made[absorbed]

    return make


@pytest.fixture(scope="session")
def host() -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.engine.host"],
        cwd=ROOT,
        env=os.environ | LOCAL | SHARED,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="session")
def results(
    host: "subprocess.Popen[str]",
    quantized: Callable[[str], Path],
    adapters: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunEngine:
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
        log = folder / f"{name}.log"
        asked = {"environment": CONFIGURATIONS[name].environment, "output": str(log)}
        asked["arguments"] = [name, str(quantized(name)), str(adapters(name)), str(partial)]
        host.stdin.write(json.dumps(asked) + "\n")
        host.stdin.flush()
        status = json.loads(host.stdout.readline())["status"]
        assert status == 0, f"engine {name} ended with {status}:\n{log.read_text()[-6000:]}"
        partial.rename(target)

    return run


@pytest.fixture(scope="session")
def amx() -> bool:
    """Whether vLLM has a latent backend with chunked prefill and prefix caching for this CPU."""
    return torch.cpu._is_amx_tile_supported()
