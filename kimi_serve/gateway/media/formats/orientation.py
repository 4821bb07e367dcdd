"""Which way up a picture is: by EXIF, and by XMP where EXIF is silent, as Pillow decides it. Knows no format.

Where the metadata are broken, Pillow raises inside exif_transpose and vLLM keeps the picture as stored: so does this.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from kimi_serve.gateway.media.formats.reading import MalformedError, Order, parts

ORIENTATION: Final = 274
SIDES_SWAP: Final = (5, 6, 7, 8)

# The keys under which Pillow's readers leave metadata, and from which its getexif reads them back.
Notes = dict[str, bytes | str]
EXIF, RAW_EXIF, XMP_TEXT, XMP = "exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"
NOTE_KEYS: Final = frozenset({EXIF, RAW_EXIF, XMP_TEXT, XMP})

_EXIF_PREFIX = re.compile(rb"^(Exif\x00\x00){1,2}")
_XMP_TEXT = re.compile(r'tiff:Orientation(="|>)([0-9])')
_XMP_BYTES = re.compile(rb'tiff:Orientation(="|>)([0-9])')

TIFF_HEADS: Final = (b"MM\0\x2a", b"II\x2a\0", b"MM\x2a\0", b"II\0\x2a", b"MM\0\x2b", b"II\x2b\0")

BYTE, UNDEFINED = 1, 7
_NUMBERS: Final = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 12: "d", 13: "L", 16: "Q"}
_RATIONALS: Final = {5: "LL", 10: "ll"}
_UNITS: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


@dataclass(frozen=True, slots=True)
class Tag:
    """One entry of a directory: its type and its undecoded bytes."""

    kind: int
    raw: bytes
    order: Order

    def value(self) -> float | None:
        """Return the first number; None for text and bytes, which equal no number."""
        mark = "<" if self.order == "little" else ">"
        if self.kind in _NUMBERS:
            first: int | float = struct.unpack_from(mark + _NUMBERS[self.kind], self.raw)[0]
            return first
        if self.kind in _RATIONALS:
            above, below = struct.unpack_from(mark + _RATIONALS[self.kind], self.raw)
            return None if below == 0 else above / below
        return None


def sides_swap(notes: Notes) -> bool:
    """Whether exif_transpose turns the picture by a quarter."""
    try:
        return _orientation(notes) in SIDES_SWAP
    except (MalformedError, ValueError, TypeError, struct.error):
        return False


def directory_swaps(tags: dict[int, Tag], notes: Notes) -> bool:
    """Like sides_swap, for a file whose own directory is its EXIF."""
    try:
        return _orientation_of(tags, notes) in SIDES_SWAP
    except TypeError:
        return False


def read_directory(data: bytes, start: int, order: Order, *, big: bool, wanted: frozenset[int]) -> dict[int, Tag]:
    """Read one TIFF directory as Pillow does: the first of equal tags counts, and a value past the end stops it."""
    count_size, entry_size, inline = (8, 20, 8) if big else (2, 12, 4)
    mark = ("<" if order == "little" else ">") + ("HHQ" if big else "HHL")
    found: dict[int, Tag] = {}
    seen: set[int] = set()
    if start + count_size > len(data):
        return found
    count = int.from_bytes(data[start : start + count_size], order)
    at, out_of_line = start + count_size, 0
    for index in parts():
        if index >= count or at + entry_size > len(data):
            break
        tag, kind, length = struct.unpack_from(mark, data, at)
        value_at, at = at + entry_size - inline, at + entry_size
        size = length * _UNITS.get(kind, 0)
        if tag in seen or size == 0:
            continue
        if size > inline:
            value_at = int.from_bytes(data[value_at : value_at + inline], order)
            if value_at >= 2**63:
                continue
            out_of_line += size
            if out_of_line > len(data):
                continue
            if value_at + size > len(data):
                break
        seen.add(tag)
        if tag in wanted:
            found[tag] = Tag(kind, data[value_at : value_at + size], order)
    return found


def _orientation(notes: Notes) -> float | None:
    return _orientation_of(_exif_tags(notes), notes)


def _orientation_of(tags: dict[int, Tag], notes: Notes) -> float | None:
    if ORIENTATION in tags:
        return tags[ORIENTATION].value()
    text = notes.get(XMP_TEXT)
    if text:
        assert isinstance(text, str)
        match: re.Match[str] | re.Match[bytes] | None = _XMP_TEXT.search(text)
    else:
        raw = notes.get(XMP)
        if isinstance(raw, str):
            raise TypeError("Pillow searches this note as bytes, and fails on text")
        match = _XMP_BYTES.search(raw) if raw else None
    return int(match[2]) if match else None


def _exif_tags(notes: Notes) -> dict[int, Tag]:
    block = notes.get(EXIF)
    if block is None and RAW_EXIF in notes:
        raw = notes[RAW_EXIF]
        assert isinstance(raw, str)
        block = bytes.fromhex("".join(raw.split("\n")[3:]))
    if isinstance(block, str):
        raise TypeError("Pillow reads this note as bytes, and fails on text")
    block = _EXIF_PREFIX.sub(b"", block) if block else b""
    if not block:
        return {}
    if block[:4] not in TIFF_HEADS or block[2] == 0x2B:  # Pillow cannot read a BigTIFF here
        raise MalformedError("the EXIF block is no TIFF")
    order: Order = "big" if block[:2] == b"MM" else "little"
    start: int = struct.unpack_from(">L" if order == "big" else "<L", block, 4)[0]
    return read_directory(block, start, order, big=False, wanted=frozenset({ORIENTATION}))
