"""The image path on this CPU: preparing pictures, and the vision tower, beside what they replace.

    python -m benchmarks.images                          # some minutes on two cores
    python -m benchmarks.images --blocks 27 --sides 448  # the whole tower, which is slow: the other one above all

Preparing is measured against the published steps (PIL, float32, normalise, cut) on decoded pictures; the tower against
vLLM's own (vllm.model_executor.models.moonvit), full width, the same random weights. In turns in one process; the
median of --rounds counts. Beside each tower stands what the machine could do in those rounds: products of large
matrices. --out takes one JSON line a row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import published_images, towers
from benchmarks.report import hardware
from kimi_serve.inputs.config import ImageConfig, VisionConfig
from kimi_serve.inputs.geometry import Geometry, Grid
from kimi_serve.inputs.image_processor import ImageProcessor

CORES = len(os.sched_getaffinity(0))
FULL = VisionConfig(14, 1152, 4304, 27, 16, 64, 64, (2, 2))
IMAGE = ImageConfig(Geometry(14, 2, 2, 16_384), published_images.MEAN, published_images.STD)
SQUARE = 1024  # of the matrix products that measure the machine
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
PREPARING_GOAL, TOWER_GOAL = 5.0, 1.5


@dataclass(frozen=True, slots=True)
class Prepared:
    """Milliseconds of processor time an image on one core, and images a second on all."""

    what: str
    published_ms: float
    ours_ms: float
    resize_ms: float  # of both: PIL's, whose bits are the contract
    published_per_s: float
    ours_per_s: float
    one_core_per_s: float  # ours, by the clock

    @property
    def times(self) -> float:
        return self.published_ms / self.ours_ms


@dataclass(frozen=True, slots=True)
class Seen:
    """Seconds of a call of each tower, and what was in it."""

    what: str
    dtype: str
    images: int
    blocks: int
    ours_s: float
    in_tree_s: float
    gigaflop: float
    float32_gflops: float
    bfloat16_gflops: float
    difference: float  # root mean square, of features whose own is about 1

    @property
    def times(self) -> float:
        return self.in_tree_s / self.ours_s

    def per_s(self, seconds: float) -> float:
        """Images a second of a tower with all its blocks, if each costs what these did."""
        return self.images / seconds * self.blocks / FULL.num_hidden_layers


@dataclass(frozen=True, slots=True)
class Held:
    """MiB resident at the peak of a call, beyond what was before it."""

    tower: str
    images: int
    mib: float


Call = Callable[[], object]


def in_turns(calls: Sequence[Call], rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """The median seconds of each; call each once before."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for seconds, call in zip(found, calls, strict=True):
            begun = clock()
            call()
            seconds.append(clock() - begun)
    return [statistics.median(seconds) for seconds in found]


def prepare(what: str, side: int, limit: int, images: int, rounds: int) -> Prepared:
    """`limit`: in_token_limit of a checkpoint; over it a picture is resized."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(images)]
    processor = ImageProcessor(replace(IMAGE, geometry=Geometry(14, 2, 2, limit)))
    size = processor.geometry.resized(side, side)

    def resize() -> None:
        for picture in pictures if size != (side, side) else ():
            picture.resize(size, Image.Resampling.BICUBIC)

    calls: list[Call] = [
        lambda: published_images.pixel_values(pictures, limit),
        lambda: processor.all(pictures, threads=1),
        resize,
    ]
    for call in calls:
        call()
    torch.set_num_threads(1)
    published, ours, resized = (seconds / images for seconds in in_turns(calls, rounds, time.thread_time))
    one = in_turns(calls[1:2], rounds)[0]
    torch.set_num_threads(CORES)
    calls[1] = lambda: processor.all(pictures, threads=CORES)
    published_all, ours_all = in_turns(calls[:2], rounds)
    per_s = [images / seconds for seconds in (published_all, ours_all, one)]
    return Prepared(what, 1e3 * published, 1e3 * ours, 1e3 * resized, *per_s)


def see(side: int, images: int, dtype: str, blocks: int, rounds: int, threads: int) -> Seen:
    """With one thread its processor time counts, which other work on the machine changes little."""
    torch.set_num_threads(threads)
    vision, grid = replace(FULL, num_hidden_layers=blocks), Grid(side // 14, side // 14)
    torch.manual_seed(0)
    ours, weights = towers.ours(vision, IMAGE, DTYPES[dtype])
    in_tree = towers.in_tree(vision, weights, DTYPES[dtype])
    grids = torch.tensor([[grid.height, grid.width]] * images)
    patches = torch.randint(0, 256, (images * grid.num_patches, 3, 14, 14), dtype=torch.uint8)
    pixels = ((patches.float() / 255 - 0.5) / 0.5).to(DTYPES[dtype])  # what the published steps hand it
    difference = ours(patches, grids).float() - torch.cat(in_tree(pixels, grids)).float()
    # Both have run once; products of matrices need no more than these rounds.
    squares = {name: torch.randn(SQUARE, SQUARE, dtype=each) for name, each in DTYPES.items()}
    mine, theirs, *products = in_turns(
        [
            lambda: ours(patches, grids),
            lambda: in_tree(pixels, grids),
            lambda: squares["float32"] @ squares["float32"],
            lambda: squares["bfloat16"] @ squares["bfloat16"],
        ],
        rounds,
        time.thread_time if threads == 1 else time.perf_counter,
    )
    work = images * gigaflop(vision, grid)
    speeds = [2 * SQUARE**3 / seconds / 1e9 for seconds in products]
    rms = float(difference.square().mean().sqrt())
    return Seen(f"{side}x{side}", dtype, images, blocks, mine, theirs, work, *speeds, rms)


def gigaflop(vision: VisionConfig, grid: Grid) -> float:
    """Additions and multiplications of one image: products with weights, and attention."""
    hidden, patches = vision.hidden_size, grid.num_patches
    block = 4 * hidden * hidden + 2 * hidden * vision.intermediate_size + 2 * patches * hidden
    return 2 * patches * (3 * vision.patch_size**2 * hidden + vision.num_hidden_layers * block) / 1e9


def hold(counts: Sequence[int]) -> Iterator[Held]:
    """Of pictures of 448 x 448 in float32, one block: a tower's memory does not depend on its depth."""
    vision = replace(FULL, num_hidden_layers=1)
    ours, weights = towers.ours(vision, IMAGE, torch.float32)
    in_tree = towers.in_tree(vision, weights, torch.float32)
    for images in counts:
        grids = torch.tensor([[32, 32]] * images)
        patches = torch.randint(0, 256, (images * 1024, 3, 14, 14), dtype=torch.uint8)
        yield Held("ours", images, resident_peak(partial(ours, patches, grids)))
        pixels = (patches.float() / 255 - 0.5) / 0.5
        yield Held("in-tree", images, resident_peak(partial(in_tree, pixels, grids)))


def resident_peak(call: Call) -> float:
    call()  # what stays, such as tables, is there before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n| {' | '.join(titles)} |\n| --- |{' ---: |' * (len(titles) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def show_prepared(rows: Sequence[Prepared]) -> None:
    here = f"on {CORES} cores"
    titles = ["preparing", "published, ms a core", "ours, ms a core", "times", "PIL's resize of it, ms"]
    titles += [f"published, images/s {here}", f"ours, images/s {here}", "ours, times one core"]

    def cells(row: Prepared) -> list[str]:
        each = [f"{value:.2f}" for value in (row.published_ms, row.ours_ms, row.times, row.resize_ms)]
        gain = row.ours_per_s / row.one_core_per_s
        return [row.what, *each, f"{row.published_per_s:.1f}", f"{row.ours_per_s:.1f}", f"{gain:.2f}"]

    table(titles, [cells(row) for row in rows])


def show_seen(rows: Sequence[Seen]) -> None:
    titles = ["tower", "images a call", "blocks", "ours, s", "in-tree, s", "times"]
    titles += ["ours, images/s of 27 blocks", "in-tree, images/s", "ours, GFLOP/s", "in-tree, GFLOP/s"]
    titles += ["machine, float32 GFLOP/s", "machine, bfloat16", "difference"]

    def cells(row: Seen) -> list[str]:
        both = (row.ours_s, row.in_tree_s)
        speeds = [*(row.gigaflop / each for each in both), row.float32_gflops, row.bfloat16_gflops]
        return [
            *(f"{row.what}, {row.dtype}", str(row.images), str(row.blocks)),
            *(f"{value:.2f}" for value in (*both, row.times)),
            *(f"{row.per_s(each):.3f}" for each in both),
            *(f"{speed:.0f}" for speed in speeds),
            f"{row.difference:.1e}",
        ]

    table(titles, [cells(row) for row in rows])


def judged(prepared: Sequence[Prepared], seen: Sequence[Seen]) -> Iterator[str]:
    for row in prepared:
        yield _judge(f"preparing {row.what}, times the published steps, a core", row.times, PREPARING_GOAL)
    for one in seen:
        yield _judge(f"tower, {one.what} in {one.dtype}, times vLLM's", one.times, TOWER_GOAL)


def _judge(name: str, value: float, goal: float) -> str:
    return f"- {name}: {value:.2f} (goal: at least {goal:g}): {'holds' if value >= goal else 'DOES NOT HOLD'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=1, help="of the tower; each costs the same")
    parser.add_argument(
        "--sides", type=int, nargs="*", default=[112, 448, 1792], help="pictures of the tower, in pixels"
    )
    parser.add_argument("--patches", type=int, default=4096, help="of a call, or one picture's")
    parser.add_argument("--threads", type=int, default=CORES, help="of the tower; 1: processor time is what counts")
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--no-preparing", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    prepared: list[Prepared] = []
    if not arguments.no_preparing:
        prepared.append(prepare("448x448", 448, 4096, 32, 4 * rounds))
        prepared.append(prepare("1792x1792, as it is (limit 16,384)", 1792, 16_384, 4, 2 * rounds))
        prepared.append(prepare("1792x1792, resized (limit 4,096)", 1792, 4096, 4, rounds))
        show_prepared(prepared)
    with towers.alone():
        seen = [
            see(
                side, max(1, arguments.patches // (side // 14) ** 2), dtype, arguments.blocks, rounds, arguments.threads
            )
            for dtype in arguments.dtypes
            for side in arguments.sides
        ]
        show_seen(seen)
        held = [] if arguments.no_memory else list(hold((8, 64)))
    if held:
        table(["tower's memory", "images", "MiB at the peak"], [[r.tower, str(r.images), f"{r.mib:.0f}"] for r in held])
    print(f"\n{hardware()}\n")
    print("\n".join(judged(prepared, seen)))
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(asdict(row)) + "\n" for row in (*prepared, *seen, *held)))


if __name__ == "__main__":
    main()
