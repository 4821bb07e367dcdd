"""What the launcher's tests share: a checkpoint's directory, machines, and a stand-in for the vllm executable."""

import socket
import sys
from pathlib import Path

import pytest

from kimi_serve.launch.machine import Machine

GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoint"
FAKE_VLLM = Path(__file__).parent / "fake_vllm.py"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The golden pack's files, with a stand-in of one mebibyte for the weights."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for file in GOLDEN.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    (directory / "model.safetensors").write_bytes(bytes(1 << 20))
    return directory


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """An executable that speaks as much of `vllm serve` as the launcher listens to."""
    path = tmp_path / "vllm"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_VLLM} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def machine(**changes: object) -> Machine:
    """A CPU machine of 8 cores and 32 GiB, with AMX, a compiler and nothing to preload."""
    values: dict[str, object] = {
        "engine": "cpu",
        "knows_vllm": True,
        "cpus": tuple(range(8)),
        "cores": 8,
        "numa_nodes": 1,
        "isa": frozenset({"avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}),
        "memory_total": 32 << 30,
        "memory_available": 30 << 30,
        "gpus": (),
        "tcmalloc": None,
        "openmp": None,
        "compiler": True,
    }
    return Machine(**{**values, **changes})  # type: ignore[arg-type]
