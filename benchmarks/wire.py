"""The stand-in engine and clients of stand_in/, built and driven. Knows its commands; not what is measured with it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kimi_serve.testing import answers
from kimi_serve.testing.asked import Asked
from kimi_serve.testing.dials import Dials

SOURCES = Path(__file__).parent / "stand_in"
TOKENS = 16  # of an answer that does not stream
GOES_ON_S = 60.0  # a measurement that takes so much longer than it should hangs


@dataclass(frozen=True, slots=True)
class Found:
    """What one measurement found."""

    done: int
    frames: int
    all_requests: int  # at the engine, those of warming up included; and frames that arrived
    all_frames: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float
    error: str


@dataclass(frozen=True, slots=True)
class StandIn:
    """Engine and clients, in one process on one core."""

    child: subprocess.Popen[str]
    folder: Path
    port: int

    def at_rate(self, port: int, request: Path, rate: float, seconds: float) -> Found:
        return self._ask(f"rate {port} {rate} {seconds} {request}")

    def flat_out(self, port: int, request: Path, clients: int, seconds: float) -> Found:
        return self._ask(f"flat {port} {clients} {seconds} {request}")

    def frames(self, port: int, request: Path, streams: int, seconds: float, window: int) -> Found:
        """`window`: how many frames of a stream are on their way at once; 0: as many as TCP takes."""
        return self._ask(f"frames {port} {streams} {seconds} {request} {window}")

    def _ask(self, command: str) -> Found:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(command + "\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit(f"the stand-in ended in: {command}")
        told = json.loads(line)
        return Found(**{name: told[name] for name in Found.__slots__})


@contextmanager
def stand_in(folder: Path, port: int, core: int) -> Iterator[StandIn]:
    binary = folder / "stand_in"
    subprocess.run(["g++", "-O2", "-std=c++17", "-o", binary, SOURCES / "main.cpp"], check=True)
    write_script(folder)
    command = ["taskset", "-c", str(core), str(binary), str(port), str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        if not child.stdout.readline():
            raise SystemExit("the stand-in did not start")
        yield StandIn(child, folder, port)
    finally:
        child.kill()
        child.wait()


def write_script(folder: Path) -> None:
    """What the engine of the tests would say, byte for byte, but for the stream's number in each frame."""
    dials = Dials(tokens=TOKENS, text=" [0000]")
    answer = answers.Answer("chat", dials, Asked(stream=True, include_usage=False, max_tokens=None))
    said = {
        "whole": answer.whole(),
        "opening": answer.opening(),
        "frame": next(answer.contents()),
        "ending": answer.ending(),
        "_health": b"",
        "_v1_models": answers.models(dials),
        "_plugins_kimi_serve_info": answers.info(dials, "stand-in"),
        "_version": b'{"version":"0.32.0"}',
        "_metrics": answers.metrics(dials, 0),
    }
    for name, data in said.items():
        (folder / name).write_bytes(data)
