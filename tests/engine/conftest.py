"""Engines for the tests: each configuration runs once a session, in its own processes. Knows no expectation."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine import adapter_sets, mixed
from tests.engine.configurations import CONFIGURATIONS, SHARED
from tests.engine.golden import PACK, Arrays
from tests.vllm_host import Host

ENGINE_TIMEOUT = 540  # seconds for start and passes: a loaded machine of two cores takes four times an idle one's

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
    folder = tmp_path_factory.mktemp("quantized")

    def make(name: str) -> Path:
        configuration = CONFIGURATIONS[name]
        asked = configuration.quantized
        if asked not in made:
            made[asked] = folder / f"{len(made)}"
            command = [sys.executable, "-m", "kimi_serve.cli", "quantize", golden_checkpoint, made[asked], *asked]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        if not configuration.plain:
            return made[asked]
        if not (folder / name).exists():
            mixed.make(made[asked], folder / name, configuration.plain)
        return folder / name

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
def results(
    vllm_host: Host,
    quantized: Callable[[str], Path],
    adapters: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunEngine:
    """What a configuration's engine gave, by pass/case/what; the engine has ended."""
    folder = tmp_path_factory.mktemp("results")
    done: dict[str, Arrays] = {}
    failed: dict[str, str] = {}  # an engine that fails is not started again for the next test

    def run(name: str) -> Arrays:
        assert name not in failed, failed[name]
        if name not in done:
            target = folder / f"{name}.npz"
            environment = SHARED | CONFIGURATIONS[name].environment
            arguments = (name, str(quantized(name)), str(adapters(name)), str(target))
            ran = vllm_host.run("-m", "tests.engine.driver", *arguments, timeout=ENGINE_TIMEOUT, **environment)
            if ran.status != 0:
                failed[name] = f"engine {name} ended with {ran.status}:\n{ran.stderr[-6000:]}"
                pytest.fail(failed[name])
            with np.load(target) as file:
                done[name] = dict(file)
        return done[name]

    return run


@pytest.fixture(scope="session")
def amx() -> bool:
    """Whether vLLM has a latent backend with chunked prefill and prefix caching for this CPU."""
    return torch.cpu._is_amx_tile_supported()
