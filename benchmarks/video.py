"""Ten minutes of 1080p as 256 frames: as the gateway reads a video, beside decoding all of its frames, in turns.

    python -m benchmarks.video --film /tmp/film.mp4     # drawn and encoded where it is missing: some minutes, once

The film is H.264 as libx264 makes it by itself (three B-frames, a keyframe every 250 frames at the most), 30 frames a
second of a scene that moves, with noise as a camera has it. Both sides run in one process with one thread of FFmpeg.
Prints a table and one line of JSON; on a machine that is shared, processor time says more than the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from tqdm import tqdm

from kimi_serve.gateway.expansion import videos
from kimi_serve.gateway.expansion.room import Room
from kimi_serve.gateway.expansion.videos import Asked
from kimi_serve.gateway.expansion.workers import Workers
from kimi_serve.gateway.prompt_cost import Meter
from kimi_serve.gateway.settings import Videos
from kimi_serve.launch.footprint import BUNDLED

WIDTH, HEIGHT, RATE, SECONDS = 1920, 1080, 30, 600
GOAL = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of the film, where it is made")
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="veryfast", help="libx264's")
    args = parser.parse_args()
    if not args.film.exists():
        draw(args.film, args.seconds, args.preset)
    data = args.film.read_bytes()
    ours, theirs = [], []
    for _ in tqdm(range(args.rounds), unit="round"):
        ours.append(timed(lambda: shown(data, args.frames)))
        theirs.append(timed(lambda: decoded(args.film)))
    report(args, ours, theirs)


def draw(film: Path, seconds: int, preset: str) -> None:
    """A bright disc on its way over a gradient that drifts, a cut every 20 seconds, noise everywhere."""
    chance = np.random.default_rng(1)
    noise = [chance.integers(-6, 7, (HEIGHT, WIDTH), dtype=np.int16) for _ in range(16)]
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.int16)
    partial = film.with_suffix(".partial")
    with av.open(str(partial), "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"preset": preset})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in tqdm(range(seconds * RATE), unit="frame", desc="drawing"):
            scene = number // (20 * RATE)
            luma = (x // (2 + scene % 5) + y // (3 + scene % 3) + number) % 160 + 40 + noise[number % len(noise)]
            at_x, at_y = (number * 7) % WIDTH, HEIGHT // 2 + int(300 * np.sin(number / 20))
            luma[(x - at_x) ** 2 // 100 + (y - at_y) ** 2 // 100 < 60] = 230
            planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            planes[:HEIGHT] = luma
            planes[HEIGHT:] = 100 + scene * 3 % 60
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    partial.replace(film)


def shown(data: bytes, frames: int) -> None:
    """By the gateway's own path: a process with limits, chosen frames, their JPEGs."""
    rules = Videos(cpu_s=3600, timeout_s=3600, max_duration_s=7200)
    limits = videos.limits(rules, 2**31, 2**30)
    meter = Meter.from_directory(BUNDLED)

    async def read() -> int:
        async with Workers(1, wait_s=10) as workers, workers.over(videos.READER, limits) as worker:
            asked, room = Asked(None, frames, timestamps=False), Room(meter, frames)
            return len([p async for p in videos.show(worker, limits, ("mov", data), asked, rules, meter, room)])

    assert asyncio.run(read()) == frames


def decoded(film: Path) -> None:
    with av.open(str(film)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        assert sum(1 for _ in container.decode(video=0))


class Spent(NamedTuple):
    clock_s: float
    processor_s: float  # of this process and of those that ended meanwhile


def timed(work: Callable[[], None]) -> Spent:
    clock, processor = time.perf_counter(), _processor_s()
    work()
    return Spent(time.perf_counter() - clock, _processor_s() - processor)


def _processor_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def report(args: argparse.Namespace, ours: list[Spent], theirs: list[Spent]) -> None:
    print(f"{args.film}: {args.film.stat().st_size / 1e6:.0f} MB, {args.rounds} rounds, medians\n")
    print(f"| | {args.frames} frames by the gateway's path, s | all frames decoded, s | ratio |")
    print("| --- | ---: | ---: | ---: |")
    ratios = {}
    for number, name in enumerate(Spent._fields):
        own, whole = [one[number] for one in ours], [one[number] for one in theirs]
        ratios[name] = statistics.median(a / b for a, b in zip(own, whole, strict=True))
        print(f"| {name} | {statistics.median(own):.1f} | {statistics.median(whole):.1f} | {ratios[name]:.2f} |")
    for name, ratio in ratios.items():
        print(f"\n{name}: {ratio:.2f} (goal: below {GOAL}): {'holds' if ratio < GOAL else 'DOES NOT HOLD'}")
    print(json.dumps({"benchmark": "video", "ours": ours, "all": theirs, "ratio": ratios, "frames": args.frames}))


if __name__ == "__main__":
    main()
