"""What gateway and child send each other: a head of JSON, then bytes. Knows lengths; no meaning."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO, Final

Json = dict[str, Any]

LENGTHS: Final = struct.Struct(">II")  # of the head, of the bytes


class BrokenWireError(Exception):
    """The gateway has hung up."""


def pack(head: Json, data: bytes = b"") -> list[bytes]:
    text = json.dumps(head).encode()
    return [LENGTHS.pack(len(text), len(data)), text, data]


def read(stream: BinaryIO) -> tuple[Json, bytes]:
    """In the child, which may wait as long as the gateway lets it."""
    head, data = LENGTHS.unpack(_exactly(stream, LENGTHS.size))
    return json.loads(_exactly(stream, head)), _exactly(stream, data)


def write(stream: BinaryIO, head: Json, data: bytes = b"") -> None:
    for part in pack(head, data):
        stream.write(part)
    stream.flush()


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise BrokenWireError
    return data
