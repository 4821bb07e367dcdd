"""Requests made ahead of time, in a process of their own: drawing pictures must not delay what is due.

python -m benchmarks.load.feed SCENARIO --count 100 > asks     # a line of JSON and then so many bytes, for each
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final

from benchmarks.load import scenarios
from benchmarks.load.conversations import Ask, ask

ROOT: Final = Path(__file__).parents[2]
ENDS_WITHIN_S: Final = 5.0


class FeedError(RuntimeError):
    """The process that makes requests ended early."""


@contextmanager
def asks(name: str, file: Path, model: str, count: int, salt: str) -> Iterator[Iterator[Ask]]:
    """The pipe bounds how far that process runs ahead."""
    command = [sys.executable, "-m", "benchmarks.load.feed", name, "--scenarios", str(file.resolve())]
    command += ["--model", model, "--count", str(count), "--salt", salt]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as child:
        assert child.stdout is not None
        try:
            yield _read(child.stdout, count)
        finally:
            child.terminate()
            child.stdout.close()
            child.wait(ENDS_WITHIN_S)


def _read(source: IO[bytes], count: int) -> Iterator[Ask]:
    for number in range(count):
        head = source.readline()
        if not head:
            raise FeedError(f"requests: {number} of {count} were made, then their process ended")
        told = json.loads(head)
        body = source.read(told["bytes"])
        yield Ask(told["number"], told["part"], body, told["cancel_after_s"])


def write(one: Ask, to: BinaryIO) -> None:
    head = {"number": one.number, "part": one.part, "cancel_after_s": one.cancel_after_s, "bytes": len(one.body)}
    to.write(json.dumps(head).encode() + b"\n" + one.body)
    to.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario")
    parser.add_argument("--scenarios", type=Path, default=scenarios.BUNDLED)
    parser.add_argument("--model", default="kimi-vl")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--salt", default="000000")
    args = parser.parse_args()
    scenario = scenarios.read(args.scenario, args.scenarios)
    try:
        for number in range(args.count):
            write(ask(scenario, args.model, number, args.salt), sys.stdout.buffer)
    except BrokenPipeError:
        sys.stderr.close()  # who reads has left; nothing is to be said about it at exit either


if __name__ == "__main__":
    main()
