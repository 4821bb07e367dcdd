"""No kernel reads or writes past a buffer, or relies on what C++ leaves undefined."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kimi_serve.kernels import library

DRIVER = Path(__file__).with_name("sanitized.cpp")
CALLS = 100
FLAGS = ["-std=c++17", "-O1", "-g", "-fopenmp", "-ffp-contract=off", "-fsanitize=address,undefined"]


# Paths for instructions that this CPU lacks run here too: what is theirs alone is spelled out (vnni.cpp, amx.cpp).
def emulated() -> list[str]:
    return ["-DKIMI_EMULATE_AMX", *([] if "avx512vnni" in library.load().paths else ["-DKIMI_EMULATE_VNNI"])]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_drawn_calls_run_clean_under_both_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "sanitized"
    sources = [str(path) for path in sorted((library.FOLDER / "csrc").glob("*.cpp"))]
    subprocess.run(
        ["g++", *FLAGS, *emulated(), "-fno-sanitize-recover=all", "-o", program, DRIVER, *sources],
        check=True,
        timeout=300,
    )
    # libgomp's threads outlive main on purpose, and LeakSanitizer cannot trace where ptrace is not allowed.
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
    shown = subprocess.run(
        [program, str(CALLS)], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert shown.returncode == 0, shown.stdout[-2000:] + shown.stderr[-4000:]
    paths = 4 if "avx2" in library.load().paths else 1
    assert shown.stdout == f"{CALLS} calls of each on {paths} paths\n"
