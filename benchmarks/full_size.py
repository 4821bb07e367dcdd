"""The full-size model with random weights, served: what a user gets on this CPU, beside what the machine can do.

    python -m benchmarks.full_size FOLDER                     # int4: 9.6 GB are written once to FOLDER/int4
    python -m benchmarks.full_size FOLDER --scheme int8       # 17 GB
    python -m benchmarks.full_size FOLDER --only-make         # the checkpoint, and how its routing spreads
    python -m benchmarks.full_size FOLDER --llama PEERS       # llama.cpp on the same shapes, after ours
    python -m benchmarks.full_size FOLDER --layers 3          # a rehearsal

Starts `kimi-serve engine` on the checkpoint as a user would, and asks it over HTTP. A round measures memory read by as
many threads, float32 products, decoding of 1, 8 and 16 different sequences, and a prompt; the median of the rounds
counts. A ceiling is the larger of two times: the bytes that a step needs over the bandwidth of its round, and its
products over float32's speed, which products of int8 may pass. Prints a Markdown table and the issue's goals; --out
takes one JSON line a row.
"""

from __future__ import annotations

import argparse
import json
import mmap
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from benchmarks import goals, random_checkpoint, token_cost
from benchmarks.llama_peer import Llama
from benchmarks.report import hardware
from benchmarks.served_engine import Decoded, Engine, decode_prompts
from benchmarks.token_cost import Cost, Routing
from kimi_serve.kernels import library

BATCHES = {1: 16, 8: 10, 16: 8}  # sequences: tokens of each
PREFILL = 2048
READ_BYTES = 1 << 29
SQUARE = 512  # of the float32 matrix product that measures arithmetic


class Target(Protocol):
    """Whoever is measured."""

    def decode(self, round_: int, batch: int, tokens: int) -> Decoded: ...

    def prefill(self, round_: int, tokens: int) -> float: ...


@dataclass(slots=True)
class Row:
    """One figure of one target, in tokens a second, and the ceiling of the same rounds."""

    target: str
    what: str
    samples: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)  # bytes a second
    distinct: int | None = None  # tokens, least of the rounds

    @property
    def rate(self) -> float:
        return statistics.median(self.samples)

    @property
    def of_ceiling(self) -> float:
        return statistics.median(s / c for s, c in zip(self.samples, self.ceilings, strict=True))

    def told(self) -> dict[str, object]:
        return asdict(self) | {"rate": self.rate, "of_ceiling": self.of_ceiling}

    def cells(self) -> str:
        least, most = min(self.samples), max(self.samples)
        bandwidth, ceiling = statistics.median(self.bandwidths) / 1e9, statistics.median(self.ceilings)
        return (
            f"| {self.target} | {self.what} | {self.rate:.2f} ({least:.2f} to {most:.2f}) | {bandwidth:.1f} "
            f"| {ceiling:.2f} | {self.of_ceiling:.0%} |"
        )


HEADER = "| | | tokens/s, median (least to most) | memory, GB/s | ceiling, tokens/s | of the ceiling |"
RULE = "| --- | --- | --- | ---: | ---: | ---: |"


@dataclass(frozen=True, slots=True)
class Machine:
    """What it could do in one moment: bytes read and float32 multiplications, both a second."""

    bandwidth: float
    products: float

    @classmethod
    def now(cls) -> Machine:
        pages, square = mmap.mmap(-1, READ_BYTES), torch.randn(SQUARE, SQUARE)
        pages.madvise(mmap.MADV_HUGEPAGE)  # what the engine's weights lie in: small pages read slower
        data = torch.frombuffer(pages, dtype=torch.int64).fill_(1)
        read = min(library.load().read_seconds(data.data_ptr(), READ_BYTES) for _ in range(8))
        return cls(READ_BYTES / read, SQUARE**3 / min(_seconds(lambda: square @ square) for _ in range(20)))

    def decode_ceiling(self, cost: Cost, routing: Routing, batch: int) -> float:
        by_memory = cost.bytes_read(routing.used(batch)) / self.bandwidth
        return batch / max(by_memory, batch * (cost.products + cost.head_products) / self.products)

    def prefill_ceiling(self, cost: Cost) -> float:
        return self.products / cost.products


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def measure(name: str, target: Target, cost: Cost, routing: Routing, rounds: int, prefill: int) -> list[Row]:
    """All rows of a target: each round takes every one of them, after the machine's own figures."""
    rows = {batch: Row(name, f"decode, {batch} sequence{'s' * (batch > 1)}") for batch in BATCHES}
    reading = Row(name, f"prefill, {prefill} tokens")
    target.decode(-1, max(BATCHES), 2)  # buffers grow, shapes are seen
    for round_ in tqdm(range(rounds), desc=name, unit="round"):
        machine = Machine.now()
        for batch, tokens in BATCHES.items():
            decoded, row = target.decode(round_, batch, tokens), rows[batch]
            row.distinct = min(decoded.distinct, row.distinct or decoded.distinct)
            _add(row, decoded.rate, machine.decode_ceiling(cost, routing, batch), machine)
        _add(reading, target.prefill(round_, prefill), machine.prefill_ceiling(cost), machine)
    return [*rows.values(), reading]


def _add(row: Row, rate: float, ceiling: float, machine: Machine) -> None:
    row.samples.append(rate)
    row.ceilings.append(ceiling)
    row.bandwidths.append(machine.bandwidth)


def run_ours(arguments: argparse.Namespace, folder: Path, routing: Routing) -> tuple[list[Row], goals.Start]:
    """One start of the engine: its rows, and what starting took."""
    cost, log = token_cost.cost_of(folder), folder.with_name(f"{folder.name}.engine.log")
    name = f"{goals.OURS} {arguments.scheme}"
    with Engine(folder, arguments.engine_flag, log) as engine:
        rows = measure(name, engine, cost, routing, arguments.rounds, arguments.prefill)
        total, largest = engine.memory()
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return rows, goals.Start(engine.ready_s, engine.loading_s, total, largest, engine.cache, stored)


def run_llama(arguments: argparse.Namespace, folder: Path, routing: Routing) -> list[Row]:
    threads = library.load().threads
    with Llama(arguments.llama, folder.parent, folder / "config.json", arguments.scheme, threads) as llama:
        cost, name = token_cost.cost_in(folder, llama.bits_a_weight), f"{goals.PEER} {llama.format}"
        return measure(name, llama, cost, routing, arguments.rounds, arguments.llama_prefill)


def make(arguments: argparse.Namespace) -> tuple[Path, Routing]:
    suffix = "" if arguments.layers is None else f"-{arguments.layers}-layers"
    folder = arguments.folder / f"{arguments.scheme}{suffix}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = random_checkpoint.published_config(arguments.layers)
    random_checkpoint.write(random_checkpoint.Recipe(config, arguments.scheme), folder)
    return folder, token_cost.routing_of(folder, decode_prompts(0, max(BATCHES)))


def report(
    arguments: argparse.Namespace, folder: Path, routing: Routing, rows: Sequence[Row], start: goals.Start | None
) -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    kernels, needed = library.load(), token_cost.cost_of(folder).bytes_read(routing.used(1))
    lines = [f"Commit {git.stdout.strip()}; {hardware()}; {kernels.threads} threads, path {kernels.path_chosen}.", ""]
    lines += [f"A token of one sequence needs {needed / 1e6:.0f} MB; {routing}.", ""]
    lines += [HEADER, RULE, *(row.cells() for row in rows), ""]
    lines += [f"- {start}", ""] if start else []
    return "\n".join([*lines, *goals.judged(arguments.scheme, rows, start)])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoints are kept; outside this repository")
    parser.add_argument("--scheme", choices=("int4", "int8"), default="int4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=PREFILL, help="tokens of the measured prompt")
    parser.add_argument("--layers", type=int, help="fewer layers: a rehearsal, whose figures say nothing of the model")
    parser.add_argument("--only-make", action="store_true")
    parser.add_argument("--engine-flag", action="append", default=[], help="passed to kimi-serve engine; repeatable")
    parser.add_argument("--llama", type=Path, help="the environment that benchmarks/llama.sh made")
    parser.add_argument("--only-llama", action="store_true", help="leave our engine out")
    parser.add_argument(
        "--llama-prefill", type=int, default=256, help="llama.cpp's prompt: a shorter one is faster a token"
    )
    parser.add_argument("--out", type=Path, help="one JSON line a row")
    return parser.parse_args()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the engine ends with us
    arguments = parse()
    folder, routing = make(arguments)
    if arguments.only_make:
        print(f"{folder}: {routing}")
        return
    rows, start = ([], None) if arguments.only_llama else run_ours(arguments, folder, routing)
    if arguments.llama:
        rows += run_llama(arguments, folder, routing)
    print(report(arguments, folder, routing, rows, start))
    if arguments.out:
        told = [row.told() for row in rows] + ([asdict(start)] if start else [])
        arguments.out.write_text("".join(f"{json.dumps(each)}\n" for each in told), encoding="utf-8")


if __name__ == "__main__":
    main()
