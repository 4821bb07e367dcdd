"""GPUs by name, and how many requests each serves. Knows nominal memory; looks at no machine.

Nominal gigabytes count as 10^9 bytes: drivers report a little more. All run bfloat16.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kimi_serve.errors import PlanError
from kimi_serve.inputs.config import ModelConfig
from kimi_serve.launch import sizes
from kimi_serve.launch.footprint import Footprint
from kimi_serve.plan import memory
from kimi_serve.plan.memory import Part, Service
from kimi_serve.plan.options import Options

GB = 10**9


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory: int  # bytes

    @property
    def sequences(self) -> int:
        """vLLM 0.32's own --max-num-seqs."""
        return 1_024 if self.memory >= 70 * sizes.GIB and "A100" not in self.name else 256


GPUS = tuple(
    Gpu(name, gigabytes * GB)
    for name, gigabytes in (
        ("RTX A4000", 16),
        ("RTX 4000 Ada", 20),
        ("A10", 24),
        ("A30", 24),
        ("L4", 24),
        ("RTX A5000", 24),
        ("GeForce RTX 3090", 24),
        ("GeForce RTX 4090", 24),
        ("GeForce RTX 5090", 32),
        ("RTX 5000 Ada", 32),
        ("A100 40GB", 40),
        ("A40", 48),
        ("L40", 48),
        ("L40S", 48),
        ("RTX A6000", 48),
        ("RTX 6000 Ada", 48),
        ("A100 80GB", 80),
        ("H100", 80),
        ("H100 NVL", 94),
        ("RTX PRO 6000 Blackwell", 96),
        ("H200", 141),
        ("B200", 180),
    )
)


@dataclass(frozen=True, slots=True)
class Fit:
    """One GPU of a group, under one scheme."""

    gpu: Gpu
    service: Service
    fixed: Sequence[Part]
    usable: int  # bytes: vLLM's share of the memory
    per_token: int  # bytes of cache

    @property
    def left(self) -> int:
        """Bytes for the cache of requests; below zero where the rest does not fit."""
        return self.usable - sum(part.nbytes for part in self.fixed)

    @property
    def requests(self) -> int:
        """The most at once, each of the full context."""
        return min(memory.requests_in(self.left, self.per_token, self.service.context), self.service.sequences)


def choose(options: Options, here: Sequence[Gpu]) -> list[Gpu]:
    """The asked one; all of them, and this machine's, where none is asked."""
    if options.gpu_memory is not None:
        return [Gpu(f"GPU of {options.gpu_memory:g} GiB", int(options.gpu_memory * sizes.GIB))]
    if options.gpu is None:
        return [*GPUS, *here]
    wanted = _folded(options.gpu)
    found = [gpu for gpu in (*GPUS, *here) if _folded(gpu.name) == wanted]
    found = found or [gpu for gpu in (*GPUS, *here) if wanted in _folded(gpu.name)]
    if len(found) != 1:
        which = ", ".join(gpu.name for gpu in found or GPUS)
        what = "is more than one" if found else "is not in the table"
        raise PlanError(f"--gpu: {options.gpu!r} {what}: {which}; for another, give its memory with --gpu-memory")
    return found


def _folded(name: str) -> str:
    return "".join(name.lower().replace("nvidia", "").replace("-", " ").split())


def fit(gpu: Gpu, weights: int, model: ModelConfig, footprint: Footprint, options: Options, context: int) -> Fit:
    """`weights`: bytes on each GPU."""
    service = Service(context, options.sequences or gpu.sequences, options.tensor_parallel)
    return Fit(
        gpu=gpu,
        service=service,
        fixed=memory.fixed(weights, model, footprint, service),
        usable=int(gpu.memory * options.utilization),
        per_token=footprint.latent_per_token,
    )
