"""The library as it is installed asks for no memory in the hot path."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from kimi_serve.kernels import library

DRIVER = Path(__file__).with_name("allocations.cpp")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the driver stands before glibc's malloc")
def test_no_call_but_the_first_of_a_size_allocates(tmp_path: Path) -> None:
    program = tmp_path / "allocations"
    build = ["g++", "-std=c++17", "-O1", "-rdynamic", "-fopenmp", "-Wl,--no-as-needed", "-o", program, DRIVER, "-ldl"]
    subprocess.run(build, check=True, timeout=60)
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    shown = subprocess.run(
        [program, library.find(library.FOLDER)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    first, later = map(int, shown.stdout.split())
    assert first > 0
    assert later == 0
