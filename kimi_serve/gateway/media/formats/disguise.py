"""Files that the engine's Pillow would read as another format than their first bytes say. Knows Pillow's order.

vLLM lets Pillow try some forty formats in turn. A few have no magic number, or one away from the first bytes, and come
before the one that the first bytes name: a TIFF file can be a Spider image of another size at the same time.
"""

from __future__ import annotations

import re
import struct

_IM_LINE = re.compile(rb"^([A-Za-z][^:]*):[ \t]*(.*)[ \t]*$")
_IM_WORDS = frozenset(
    {
        b"Comment",
        b"Date",
        b"Digitalization equipment",
        b"File size (no of images)",
        b"Lut",
        b"Name",
        b"Scale (x,y)",
        b"Image size (x*y)",
        b"Image type",
    }
)
_IM_LINES = 1000
_SPIDER_FORMS = (1, 3, -11, -12, -21, -22)


def other_reader(data: bytes) -> str | None:
    """Name the format that would be read instead; None for a plain file."""
    if data[4:6] in (b"\x11\xaf", b"\x12\xaf") and data[14:16] in (b"\0\0", b"\3\0") and data[20:22] == b"\0\0":
        return "FLI"
    if data[4:8] in (b"\0\0\0\1", b"\0\0\0\2"):
        return "GBR"
    if data[2048:2052] == b"PCD_":
        return "PhotoCD"
    if _is_spider(data):
        return "Spider"
    if _is_im(data):
        return "IM"
    return None


def _is_spider(data: bytes) -> bool:
    if len(data) < 108:
        return False
    return any(_is_spider_header(struct.unpack_from(f"{order}27f", data)) for order in "><")


def _is_spider_header(values: tuple[float, ...]) -> bool:
    header = (99.0, *values)  # the format counts from 1
    if not all(header[index].is_integer() for index in (1, 2, 5, 12, 13, 22, 23)):
        return False
    return header[5] in _SPIDER_FORMS and header[22] == header[13] * header[23]


def _is_im(data: bytes) -> bool:
    """Whether all lines up to a zero byte are `word: value`, at least one with a word of the format."""
    if b"\n" not in data[:100]:
        return False
    at, has_word = 0, False
    for _ in range(_IM_LINES):
        while data[at : at + 1] == b"\r":
            at += 1
        if data[at : at + 1] in (b"", b"\0", b"\x1a"):
            return has_word
        line = data[at : at + 101]
        line = line[: line.find(b"\n", 1) + 1] or line
        match = _IM_LINE.match(line.removesuffix(b"\n").removesuffix(b"\r"))
        if len(line) > 100 or match is None:
            return False
        has_word = has_word or match[1] in _IM_WORDS
        at += len(line)
    return True
