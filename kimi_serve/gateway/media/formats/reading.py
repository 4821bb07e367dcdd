"""Numbers and pieces out of a picture's bytes, never past their end. Knows byte order; knows no format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Order = Literal["big", "little"]

# Chunks, markers, blocks or tags of one picture. An honest one has some thousand at most; a hostile one could be made
# of two-byte parts, each a turn of a Python loop.
MAX_PARTS: Final = 50_000


class MalformedError(Exception):
    """What is wrong with a header, as the second half of a sentence."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a header states: the size as stored, and whether the orientation swaps its sides."""

    width: int
    height: int
    sides_swap: bool = False


def piece(data: bytes, start: int, size: int) -> bytes:
    """Return `size` bytes at `start`, all of them."""
    if size < 0 or start + size > len(data):
        raise MalformedError("the file ends inside its header")
    return data[start : start + size]


def number(data: bytes, start: int, size: int, order: Order) -> int:
    return int.from_bytes(piece(data, start, size), order)


def parts() -> Iterator[int]:
    """Count the parts of one picture; the iteration ends in an error, so loop over it and leave when done."""
    yield from range(MAX_PARTS)
    raise MalformedError(f"the header has more than {MAX_PARTS} parts")
