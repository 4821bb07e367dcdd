"""TIFF and little-endian BigTIFF: the tags of the first directory. Knows tags; never looks into a strip."""

from __future__ import annotations

from kimi_serve.gateway.media.formats import orientation
from kimi_serve.gateway.media.formats.reading import Found, MalformedError, Order, number

HEADS = (b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0")  # Pillow cannot read a BigTIFF of the other byte order

_WIDTH, _HEIGHT, _XMP = 256, 257, 700
_WANTED = frozenset({_WIDTH, _HEIGHT, _XMP, orientation.ORIENTATION})
_COUNTS = {3: 2, 4: 4, 16: 8}  # bytes of one SHORT, LONG, LONG8


def read(data: bytes) -> Found:
    order: Order = "big" if data[:2] == b"MM" else "little"
    big = data[2] == 0x2B
    start = number(data, 8, 8, order) if big else number(data, 4, 4, order)
    if start == 0:
        raise MalformedError("it has no directory")
    tags = orientation.read_directory(data, start, order, big=big, wanted=_WANTED)
    notes: orientation.Notes = {}
    xmp = tags.get(_XMP)
    if xmp is not None:
        # Of any other type Pillow gets something that it cannot search: text stands for that here.
        notes[orientation.XMP] = xmp.raw if xmp.kind in (orientation.BYTE, orientation.UNDEFINED) else "unreadable"
    return Found(_side(tags, _WIDTH), _side(tags, _HEIGHT), orientation.directory_swaps(tags, notes))


def _side(tags: dict[int, orientation.Tag], which: int) -> int:
    tag = tags.get(which)
    if tag is None or tag.kind not in _COUNTS or len(tag.raw) != _COUNTS[tag.kind]:
        raise MalformedError(f"tag {which}, a side's length, is missing or no single number")
    return int.from_bytes(tag.raw, tag.order)
