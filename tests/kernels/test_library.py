"""The library is found, refused or missed with a sentence, and brings no OpenMP of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from kimi_serve.errors import KernelError
from kimi_serve.kernels import library

ROOT = Path(__file__).parents[2]
AVX2 = {"avx2", "fma"}
VNNI = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
# Slowest first.
NEEDS = {"portable": set(), "avx2": AVX2, "avx512vnni": VNNI, "amx": VNNI | {"amx_tile", "amx_int8"}}
SOURCE = 'extern "C" int kimi_abi() { return 77; }'


def test_the_fastest_path_of_this_cpu_is_chosen() -> None:
    flags = cpu_flags()
    usable = [path for path, needs in NEEDS.items() if needs <= flags]
    lib = library.load()
    # The system may refuse a process its tiles.
    assert lib.paths in (usable, [path for path in usable if path != "amx"])
    assert lib.path_chosen == lib.paths[-1]


def cpu_flags() -> set[str]:
    """As the kernel names them; none where it names no such instruction sets."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def test_an_unknown_path_is_refused() -> None:
    with pytest.raises(KernelError, match="path 'amiga' cannot run here; this CPU has portable"):
        library.load().choose_path("amiga")


def test_importing_needs_no_library(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"no compiled library in .*; install a C\+\+ compiler"):
        library.find(tmp_path)
    assert library.find_or_none(tmp_path) is None


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.cpp").write_text(SOURCE)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", "old.so", "old.cpp"], cwd=tmp_path, check=True)
    with pytest.raises(KernelError, match="has interface 77 and this package needs 3"):
        library.open_library(tmp_path / "old.so")


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(KernelError, match="cannot be loaded"):
        library.open_library(tmp_path / "text.so")


def test_it_computes_with_torchs_openmp_and_loads_none() -> None:
    code = (
        "import torch\n"
        "def runtimes():\n"
        "    return {line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.split('/')[-1]}\n"
        "before = runtimes()\n"
        "from kimi_serve.kernels import library\n"
        "torch.set_num_threads(2)\n"
        "print(library.load().threads, runtimes() - before)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.split() == ["2", "set()"]
