"""What this CPU computes with: the instruction sets by which launcher and model both decide. Knows names only."""

import platform
from collections.abc import Set
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """As the kernel spells them; none where it does not say."""
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))  # x86, ARM
    return frozenset(next(listed, ()))


def has_amx(isa: Set[str]) -> bool:
    return {"amx_tile", "amx_bf16"} <= isa


def has_bfloat16(isa: Set[str], architecture: str | None = None) -> bool:
    """Whether it multiplies bfloat16 itself. oneDNN calls every AVX-512 able to, and emulates it where this says no."""
    if (architecture or platform.machine()) == "x86_64":
        return "avx512_bf16" in isa or has_amx(isa)
    return "bf16" in isa
