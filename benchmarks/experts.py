"""One layer's experts on this CPU: our kernels, plain torch, vLLM's own, and what the machine could do just then.

    python -m benchmarks.experts                       # full-size Kimi-VL: 64 experts, top-6, 2048 x 1408
    python -m benchmarks.experts --tokens 1 8 --paths  # every path that this CPU has

Each row is measured in turns with its baselines and with the ceilings: bytes a second that the same threads read, and
float32 multiplications a second of torch's matrix product. A row's ceiling is the larger of the two times, from the
bytes of the experts that were used and from the arithmetic; int8 arithmetic may pass the second. Random ids spread over
all experts; the table says how many were used. The best of --rounds counts: the machine may be shared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from benchmarks.report import hardware
from kimi_serve.kernels import library, ops

SCHEMES = ("int4", "int4 exact", "int8", "bf16")
GROUP = 128
READ_BYTES = 1 << 26  # about what a call reads, so that both lose as much to other work on the machine
MEMORY_BYTES = 1 << 29  # read piece after piece: no cache holds a piece until its next turn
SQUARE = 512  # of the float32 matrix product that measures arithmetic


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    intermediate: int
    experts: int
    top_k: int

    def __str__(self) -> str:
        return f"{self.experts} experts, top-{self.top_k}, {self.hidden} x {self.intermediate}"

    def multiplications(self, tokens: int) -> int:
        return tokens * self.top_k * 3 * self.hidden * self.intermediate


@dataclass(frozen=True, slots=True)
class Weights:
    gate_up: Tensor
    gate_up_scales: Tensor
    down: Tensor
    down_scales: Tensor

    @property
    def bytes_an_expert(self) -> int:
        return sum(t.nbytes for t in (self.gate_up, self.gate_up_scales, self.down, self.down_scales)) // len(self.down)


@dataclass(frozen=True, slots=True)
class Step:
    """What one call is given."""

    x: Tensor
    ids: Tensor
    routing: Tensor

    @property
    def used(self) -> int:
        return len(self.ids.unique())


def draw_weights(shape: Shape, scheme: str) -> Weights:
    gate_up = _draw(scheme, shape.experts, 2 * shape.intermediate, shape.hidden)
    return Weights(*gate_up, *_draw(scheme, shape.experts, shape.hidden, shape.intermediate))


def _draw(scheme: str, experts: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    if scheme == "bf16":
        return torch.randn(experts, rows, columns, dtype=torch.bfloat16).mul_(columns**-0.5), torch.empty(0)
    if scheme == "int8":
        values = torch.randint(-127, 128, (experts, rows, columns), dtype=torch.int8)
        return values, torch.rand(experts, rows, 1) / (64 * columns**0.5)
    words = torch.randint(-(2**31), 2**31, (experts, rows, columns // 8), dtype=torch.int32)
    return words, (torch.rand(experts, rows, columns // GROUP) / (4 * columns**0.5)).bfloat16()


def draw_step(shape: Shape, tokens: int) -> Step:
    ids = torch.rand(tokens, shape.experts).topk(shape.top_k).indices.int()
    return Step(torch.randn(tokens, shape.hidden, dtype=torch.bfloat16), ids, torch.rand(tokens, shape.top_k))


def ours(weights: Weights, exact: bool) -> Callable[[Step], Tensor]:
    parts = (weights.gate_up, weights.gate_up_scales, weights.down, weights.down_scales)
    return lambda step: ops.experts(step.x, step.ids, step.routing, *parts, GROUP, exact)


def plain_torch(weights: Weights) -> Callable[[Step], Tensor]:
    """A product an expert, in bfloat16."""

    def compute(step: Step) -> Tensor:
        out = torch.zeros_like(step.x)
        for expert in step.ids.unique().tolist():
            rows, choices = (step.ids == expert).nonzero(as_tuple=True)
            gate, up = (step.x[rows] @ weights.gate_up[expert].T).chunk(2, -1)
            y = (torch.nn.functional.silu(gate) * up) @ weights.down[expert].T
            out.index_add_(0, rows, (y * step.routing[rows, choices, None]).to(out.dtype))
        return out

    return compute


def vllms_own(weights: Weights) -> Callable[[Step], Tensor] | None:
    """vLLM's bfloat16 experts, the only ones that it has for CPUs without AVX-512; None without vLLM for CPUs."""
    try:
        from vllm import _custom_ops
        from vllm.platforms import current_platform
    except ImportError:
        return None
    if not current_platform.is_cpu():
        return None
    current_platform.import_kernels()
    gate_up, down = (_custom_ops.cpu_prepack_moe_weight(matrix, "vec") for matrix in (weights.gate_up, weights.down))

    def compute(step: Step) -> Tensor:
        out = torch.empty_like(step.x)
        _custom_ops.cpu_fused_moe(out, step.x, gate_up, down, None, None, step.routing, step.ids, "silu", "vec")
        return out

    return compute


def best(calls: Sequence[Callable[[Step], object]], steps: Sequence[Step]) -> list[float]:
    """Least seconds of each call, in turns over the same steps."""
    least = [float("inf")] * len(calls)
    for step in steps:
        for index, call in enumerate(calls):
            begun = time.perf_counter()
            call(step)
            least[index] = min(least[index], time.perf_counter() - begun)
    return least


def reader() -> Callable[[Step], object]:
    data = torch.zeros(MEMORY_BYTES // 8, dtype=torch.int64)
    offsets = cycle(range(0, MEMORY_BYTES, READ_BYTES))
    return lambda _: library.load().read_seconds(data.data_ptr() + next(offsets), READ_BYTES)


def multiplier() -> Callable[[Step], object]:
    square = torch.randn(SQUARE, SQUARE)
    return lambda _: square @ square


def rows(shape: Shape, arguments: argparse.Namespace) -> Iterator[str]:
    lib = library.load()
    paths = lib.paths if arguments.paths else [lib.path_chosen]
    memory, multiply = reader(), multiplier()
    plain = draw_weights(shape, "bf16")
    baselines = [call for call in (plain_torch(plain), vllms_own(plain)) if call]
    for scheme in arguments.schemes:
        weights = plain if scheme == "bf16" else draw_weights(shape, scheme.split()[0])
        call = ours(weights, scheme in ("bf16", "int4 exact"))
        for tokens in arguments.tokens:
            for path in paths:
                lib.choose_path(path)
                steps = [draw_step(shape, tokens) for _ in range(arguments.rounds)]
                found = best([call, memory, multiply, *baselines], steps)
                used = max(step.used for step in steps)
                yield row(shape, scheme, path, tokens, used, weights.bytes_an_expert, found)


def row(shape: Shape, scheme: str, path: str, tokens: int, used: int, expert_bytes: int, found: Sequence[float]) -> str:
    mine, read, multiplied, in_torch, *in_vllm = found
    bandwidth, speed = READ_BYTES / read, SQUARE**3 / multiplied
    by_memory, by_arithmetic = used * expert_bytes / bandwidth, shape.multiplications(tokens) / speed
    ceiling = max(by_memory, by_arithmetic)
    bound = "memory" if by_memory > by_arithmetic else "arithmetic"
    vllm = f"{1e3 * in_vllm[0]:.2f}" if in_vllm else "-"
    cells = [
        str(tokens), scheme, path, str(used), f"{1e3 * mine:.2f}", f"{1e3 * in_torch:.2f}", vllm,
        f"{bandwidth / 1e9:.1f}", f"{2 * speed / 1e9:.0f}", f"{1e3 * ceiling:.2f} ({bound})", f"{ceiling / mine:.0%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| tokens | scheme | path | experts used | ours, ms | torch bf16, ms | vLLM bf16, ms | memory, GB/s "
    "| float32, GFLOP/s | ceiling, ms | of the ceiling |"
)


def call_overhead(calls: int = 2000, rounds: int = 5) -> float:
    """Processor microseconds of one smallest call through torch's dispatcher and ctypes."""
    weights, scales = torch.zeros(1, 4, dtype=torch.int32), torch.zeros(1, 1)
    x = torch.zeros(1, 32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    least = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        for _ in range(calls):
            torch.ops.kimi_serve.linear(x, weights, scales, 32, False)
        least = min(least, time.process_time() - begun)
    torch.set_num_threads(threads)
    return 1e6 * least / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 16, 512, 2048])
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--paths", action="store_true", help="every path, not only the one that would be chosen")
    parser.add_argument("--experts", type=int, default=64, help="fewer for a quick look: weights take less memory")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    shape = Shape(2048, 1408, arguments.experts, 6)
    print(f"{shape}; {hardware()}; {library.load().threads} threads; a call costs {call_overhead():.1f} us\n")
    print(HEADER)
    print("|" + " --- |" * HEADER.count(" |"))
    for line in rows(shape, arguments):
        print(line, flush=True)


if __name__ == "__main__":
    main()
