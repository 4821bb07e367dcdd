"""Runs the quantizer, and kills it at drawn moments. Knows where a run is; judges nothing.

python -m tests.quantize.killed SRC PROMPTS FOLDER EACH SEED

FOLDER/whole is made without interruption. Then, EACH times for every stage, FOLDER/N is begun, killed at a drawn moment
of that stage, and begun again unless it is there: a JSON line for each.

A moment is a call or a return in the interpreter's main thread, which its profiler sees: of Python and of C, so that
one lies between any two writes, renames and removals.
"""

import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import torch

from kimi_serve.quantize import calibrate, command, job, output
from kimi_serve.quantize.manifest import Manifest
from kimi_serve.quantize.options import Options
from kimi_serve.quantize.writer import Quantizer

SHARD_BYTES = 10_000
CALIBRATING, WRITING, NOTING, FINISHING = "calibrating", "writing a shard", "noting it", "finishing"
RENAMING = "between the last manifest and the end"
STAGES = {
    calibrate.importance.__code__: CALIBRATING,
    Quantizer.write.__code__: WRITING,
    Manifest.add.__code__: NOTING,
    job.finish.__code__: FINISHING,
}


class Moments:
    """Counts moments by stage, and kills this process at one."""

    def __init__(self, deadly: tuple[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._deadly = deadly
        self._inside: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code in STAGES:
            self._inside.add(STAGES[code])
        for stage in self._inside:
            self.counts[stage] += 1
            if (stage, self.counts[stage]) == self._deadly:
                os.kill(os.getpid(), signal.SIGKILL)
        if event == "return":
            if code is Manifest.keep.__code__:
                self._inside.add(RENAMING)
            elif code is output.complete.__code__:
                self._inside.discard(RENAMING)
            else:
                self._inside.discard(STAGES.get(code, ""))


def main(source: Path, prompts: Path, folder: Path, each: int, seed: int) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    options = Options(source, folder / "whole", "int4", calibrate=prompts, shard_bytes=SHARD_BYTES)
    counts = json.loads(run(options, Moments())[1])
    for number, stage in enumerate([*STAGES.values(), RENAMING] * each):
        options = Options(source, folder / f"{number}", "int4", calibrate=prompts, shard_bytes=SHARD_BYTES)
        moment = rng.randint(1, counts[stage])
        status, _ = run(options, Moments((stage, moment)))
        there = options.target.exists()
        again = 0 if there else run(options, Moments())[0]
        said = {"stage": stage, "moment": moment, "of": counts[stage], "status": status, "there": there, "again": again}
        print(json.dumps(said), flush=True)


def run(options: Options, moments: Moments) -> tuple[int, str]:
    """The exit status of a process of its own, a signal's negated; what it counted, unless it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sys.setprofile(moments)
            command.run(options)
            sys.setprofile(None)
            os.write(writing, json.dumps(moments.counts).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        counted = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), counted


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), int(sys.argv[4]), int(sys.argv[5]))
