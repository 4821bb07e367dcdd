"""AVIF stills: the size and turn of the primary item. Knows boxes; decodes nothing. Sequences and HEIC are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kimi_serve.gateway.media.formats.reading import Found, MalformedError, number, parts, piece

# libavif ignores XMP, but Pillow reads an orientation there when neither irot, imir nor EXIF states one.
_XMP_TURN = re.compile(rb'tiff:Orientation(="|>)[5-8]')
_FTYP_LIMIT = 256  # bytes; a longer first box can pass for a Targa file

Box = tuple[bytes, bytes]


def is_still(data: bytes) -> bool:
    """Whether the file says that it is an AVIF of one picture, from its first box."""
    return data[4:12] == b"ftypavif" or (data[4:12] == b"ftypmif1" and b"avif" in data[16:_FTYP_LIMIT])


def read(data: bytes) -> Found:
    if not 16 <= number(data, 0, 4, "big") < _FTYP_LIMIT:
        raise MalformedError("its first box has an unusual length")
    outside = list(_boxes(data, 0))
    if data[8:12] != b"avif" and any(name == b"moov" for name, _ in outside):
        raise MalformedError("it holds a sequence; send one still picture")
    inside = list(_boxes(_only(outside, b"meta"), 4))
    item = _primary(_only(inside, b"pitm"))
    properties = list(_boxes(_only(inside, b"iprp"), 0))
    held = list(_boxes(_only(properties, b"ipco"), 0))
    own = [held[index - 1] for name, box in properties if name == b"ipma" for index in _indices(box, item, len(held))]
    size = _only(own, b"ispe")
    width, height = number(size, 4, 4, "big"), number(size, 8, 4, "big")
    return Found(width, height, _is_turned(own, data))


def _is_turned(own: list[Box], data: bytes) -> bool:
    turns = [number(box, 0, 1, "big") & 3 for name, box in own if name == b"irot"]
    mirrors = [box for name, box in own if name == b"imir"]
    if len(turns) > 1 or len(mirrors) > 1:
        raise MalformedError("its picture is turned more than once")
    if not mirrors and turns in ([], [0]) and _XMP_TURN.search(data):
        raise MalformedError("its XMP turns the picture, but its irot property does not; save it upright")
    return turns in ([1], [3])


def _boxes(data: bytes, at: int) -> Iterator[Box]:
    """Yield name and content of each box from `at` to the end."""
    for _ in parts():
        if at == len(data):
            return
        length, name, head = number(data, at, 4, "big"), piece(data, at + 4, 4), 8
        if length == 1:
            length, head = number(data, at + 8, 8, "big"), 16
        elif length == 0:
            length = len(data) - at
        yield name, piece(data, at + head, length - head)
        at += length


def _only(boxes: list[Box], wanted: bytes) -> bytes:
    found = [content for name, content in boxes if name == wanted]
    if len(found) != 1:
        raise MalformedError(f"it has {len(found)} boxes '{wanted.decode()}' where one is expected")
    return found[0]


def _primary(box: bytes) -> int:
    return number(box, 4, 2 if number(box, 0, 1, "big") == 0 else 4, "big")


def _indices(box: bytes, item: int, count: int) -> Iterator[int]:
    """Yield the properties that an 'ipma' box gives to the item, counted from 1."""
    id_size = 2 if number(box, 0, 1, "big") < 1 else 4
    is_wide = number(box, 3, 1, "big") & 1
    entries, at, turns = number(box, 4, 4, "big"), 8, parts()
    for _, _ in zip(range(entries), turns, strict=False):
        owner, many = number(box, at, id_size, "big"), number(box, at + id_size, 1, "big")
        at += id_size + 1
        for _, _ in zip(range(many), turns, strict=False):
            index = number(box, at, 2, "big") & 0x7FFF if is_wide else number(box, at, 1, "big") & 0x7F
            at += 2 if is_wide else 1
            if owner == item and index:
                if index > count:
                    raise MalformedError("it names a property that it does not hold")
                yield index
