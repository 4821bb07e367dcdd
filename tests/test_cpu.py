"""Which CPUs multiply bfloat16, from what the kernel says of them."""

from pathlib import Path

import pytest

from kimi_serve import cpu

SKYLAKE = "fpu avx avx2 fma avx512f avx512dq avx512bw avx512vl"
CASCADE_LAKE = f"{SKYLAKE} avx512_vnni"
COOPER_LAKE = f"{CASCADE_LAKE} avx512_bf16"
SAPPHIRE_RAPIDS = f"{COOPER_LAKE} amx_bf16 amx_tile amx_int8"


def said(folder: Path, line: str) -> frozenset[str]:
    cpuinfo = folder / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\nbugs\t\t: some\n\nprocessor\t: 1\n{line}\n")
    return cpu.flags(cpuinfo)


@pytest.mark.parametrize(
    ("flags", "bfloat16", "amx"),
    [
        ("fpu avx avx2 fma", False, False),
        (SKYLAKE, False, False),
        (CASCADE_LAKE, False, False),
        (COOPER_LAKE, True, False),
        (SAPPHIRE_RAPIDS, True, True),
        (f"{COOPER_LAKE} amx_tile amx_int8", True, False),
    ],
)
def test_an_x86_needs_instructions_for_bfloat16(tmp_path: Path, flags: str, bfloat16: bool, amx: bool) -> None:
    isa = said(tmp_path, f"flags\t\t: {flags}")
    assert isa == set(flags.split())
    assert cpu.has_bfloat16(isa, "x86_64") is bfloat16
    assert cpu.has_amx(isa) is amx


@pytest.mark.parametrize(("features", "bfloat16"), [("fp asimd dcpodp i8mm bf16", True), ("fp asimd dcpodp", False)])
def test_an_arm_needs_them_too(tmp_path: Path, features: str, bfloat16: bool) -> None:
    assert cpu.has_bfloat16(said(tmp_path, f"Features\t: {features}"), "aarch64") is bfloat16


def test_where_the_kernel_says_nothing_nothing_is_assumed(tmp_path: Path) -> None:
    assert cpu.flags(tmp_path / "missing") == frozenset()
    assert not cpu.has_bfloat16(frozenset())
