"""The child's life: limits, one file, answers, end. Knows the wire and the system's limits; the readers know formats.

It is started with the name of a reader. Nothing of a file is touched before the limits are in force, and from then on
it can open no file and no connection: it has the three that it began with, and is allowed no fourth.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import BinaryIO, Final, Protocol

from kimi_serve.gateway.expansion.child import wire
from kimi_serve.gateway.expansion.child.refusal import RefusalError
from kimi_serve.gateway.expansion.child.wire import BrokenWireError, Json

_OUT_OF_MEMORY: Final = 3  # exit status


class Reader(Protocol):
    """A module of this package."""

    def open(self, data: bytes, asked: Json) -> tuple[object, Json]:
        """The file, and what the gateway plans by. Raises RefusalError."""

    def show(self, file: object, plan: Json) -> Iterator[tuple[Json, bytes]]:
        """What was planned, in order."""


def main() -> int:
    incoming, outgoing = _take_over_streams()
    with suppress(BrokenWireError, BrokenPipeError):  # the gateway has gone, or has enough
        # Its library has to be loaded while files can still be opened.
        reader: Reader = import_module(f"kimi_serve.gateway.expansion.child.{sys.argv[1]}")
        wire.write(outgoing, {"ready": True})
        try:
            _serve(reader, incoming, outgoing)
        except RefusalError as error:
            wire.write(outgoing, {"refused": error.kind, "why": error.why})
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)  # to unwind and tell would take memory too
    return 0


def _serve(reader: Reader, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    limits, _ = wire.read(incoming)
    _limit(limits["memory_bytes"], limits["cpu_s"])
    asked, data = wire.read(incoming)
    file, told = reader.open(data, asked)
    wire.write(outgoing, told)
    plan, _ = wire.read(incoming)
    for head, shown in reader.show(file, plan):
        wire.write(outgoing, head, shown)
    wire.write(outgoing, {"end": True})


def _take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    """Whatever a library prints goes nowhere: it may quote the file."""
    outgoing = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(0, "rb"), os.fdopen(outgoing, "wb")


def _limit(memory_bytes: int, cpu_s: int) -> None:
    """None of these can be raised again."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # those that are open stay open
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # at the first a signal that tells why
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


if __name__ == "__main__":
    sys.exit(main())
