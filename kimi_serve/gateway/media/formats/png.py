"""PNG: IHDR, and the notes on orientation before and after the picture's data. Knows chunks; inflates only notes."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import Final

from kimi_serve.gateway.media.formats import orientation
from kimi_serve.gateway.media.formats.reading import Found, MalformedError, number, parts, piece

MAX_NOTE: Final = 1 << 20  # bytes of one note, inflated: Pillow refuses more
MAX_NOTES: Final = 16  # that are inflated

_NAME = re.compile(rb"\w\w\w\w")


@dataclass(slots=True)
class _Walk:
    size: tuple[int, int] | None = None
    notes: orientation.Notes = field(default_factory=dict)
    inflated: int = 0
    exif_bytes: int = 0
    frames: int | None = None  # stated by an animation
    has_frame: bool = False  # the data belong to the animation's first frame


def read(data: bytes) -> Found:
    walk = _Walk()
    at = _before_data(data, walk)
    if walk.size is None:
        raise MalformedError("IHDR is missing")
    _after_data(data, at, walk)
    return Found(*walk.size, orientation.sides_swap(walk.notes))


def _before_data(data: bytes, walk: _Walk) -> int:
    """Read the chunks up to the picture's data; return where those begin."""
    at = 8
    for _ in parts():
        length, name = number(data, at, 4, "big"), piece(data, at + 4, 4)
        if not _NAME.match(name) or name == b"IEND":
            raise MalformedError("no IDAT chunk is found")
        if name in (b"IDAT", b"fdAT"):
            return at
        content = piece(data, at + 8, length)
        if name == b"IHDR":
            if length < 13:
                raise MalformedError("IHDR is too short")
            walk.size = number(content, 0, 4, "big"), number(content, 4, 4, "big")
        elif name == b"acTL":
            _count_frames(content, walk)
        elif name == b"fcTL":
            walk.has_frame = True
        else:
            _note(name, content, walk)
        at += 12 + length
    raise AssertionError("parts() ends in an error")


def _after_data(data: bytes, at: int, walk: _Walk) -> None:
    """Read what follows the first frame's data: Pillow reads it before it asks for the orientation."""
    frames = 1 if walk.frames is None else walk.frames + (not walk.has_frame)
    for _ in parts():
        if at + 8 > len(data):
            return
        length, name = number(data, at, 4, "big"), data[at + 4 : at + 8]
        if not _NAME.match(name) or name == b"IEND" or (name == b"fcTL" and frames > 1):
            return
        if at + 8 + length > len(data):
            return
        if name not in (b"IDAT", b"fdAT", b"DDAT"):
            _note(name, data[at + 8 : at + 8 + length], walk)
        at += 12 + length


def _count_frames(content: bytes, walk: _Walk) -> None:
    if len(content) < 8:
        raise MalformedError("acTL is too short")
    count = number(content, 0, 4, "big")
    walk.frames = None if walk.frames is not None or not 0 < count <= 0x8000_0000 else count


def _note(name: bytes, content: bytes, walk: _Walk) -> None:
    if name == b"eXIf":
        walk.notes[orientation.EXIF] = b"Exif\0\0" + content
        return
    if name not in (b"tEXt", b"zTXt", b"iTXt"):
        return
    keyword, _, rest = content.partition(b"\0")
    key = keyword.decode("latin-1")
    if key not in orientation.NOTE_KEYS:
        return
    if name == b"tEXt":
        walk.notes[key] = rest if key == orientation.EXIF else rest.decode("latin-1")
    elif name == b"zTXt":
        walk.notes[key] = (_inflated(rest[1:], walk) or b"").decode("latin-1")
    else:
        _international(key, rest, walk)


def _international(key: str, rest: bytes, walk: _Walk) -> None:
    fields = rest[2:].split(b"\0", 2)
    if len(rest) < 2 or len(fields) < 3:
        return
    text: bytes | None = fields[2]
    if rest[0] != 0:
        text = _inflated(fields[2], walk) if rest[1] == 0 else None
    if text is None:
        return
    if key == orientation.XMP_TEXT:
        walk.notes[orientation.XMP] = text
    try:
        for given in fields[:2]:
            given.decode("utf-8")
        walk.notes[key] = text.decode("utf-8")
    except UnicodeDecodeError:
        return


def _inflated(content: bytes, walk: _Walk) -> bytes | None:
    """Inflate a note; None if it is damaged."""
    walk.inflated += 1
    if walk.inflated > MAX_NOTES:
        raise MalformedError(f"more than {MAX_NOTES} notes are compressed")
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(content, MAX_NOTE)
    except zlib.error:
        return None
    if stream.unconsumed_tail:
        raise MalformedError(f"a compressed note is longer than {MAX_NOTE} bytes")
    return text
