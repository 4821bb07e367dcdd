"""WebP: the canvas of VP8X, or the frame header of VP8 and VP8L. Knows RIFF chunks; decodes no bitstream."""

from __future__ import annotations

from kimi_serve.gateway.media.formats import orientation
from kimi_serve.gateway.media.formats.reading import Found, MalformedError, number, parts, piece

_EXIF_FLAG, _XMP_FLAG = 0x08, 0x04


def read(data: bytes) -> Found:
    end = 8 + number(data, 4, 4, "little")
    if end > len(data):
        raise MalformedError("the file is shorter than it states")
    data = data[:end]  # what follows is not part of the picture
    kind = piece(data, 12, 4)
    if kind == b"VP8 ":
        if piece(data, 23, 3) != b"\x9d\x01\x2a":
            raise MalformedError("the VP8 frame has no start code")
        return Found(number(data, 26, 2, "little") & 0x3FFF, number(data, 28, 2, "little") & 0x3FFF)
    if kind == b"VP8L":
        if number(data, 20, 1, "little") != 0x2F:
            raise MalformedError("the VP8L frame has no signature")
        bits = number(data, 21, 4, "little")
        return Found((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        width, height = number(data, 24, 3, "little") + 1, number(data, 27, 3, "little") + 1
        return Found(width, height, orientation.sides_swap(_notes(data)))
    raise MalformedError("its first chunk is none of VP8, VP8L and VP8X")


def _notes(data: bytes) -> orientation.Notes:
    """Read the first EXIF and XMP chunks; libwebp keeps only those that the flags announce."""
    flags = number(data, 20, 1, "little")
    notes: orientation.Notes = {}
    at = 12
    for _ in parts():
        if at + 8 > len(data):
            break
        name, length = data[at : at + 4], number(data, at + 4, 4, "little")
        content = piece(data, at + 8, length)
        for wanted, flag, key in ((b"EXIF", _EXIF_FLAG, orientation.EXIF), (b"XMP ", _XMP_FLAG, orientation.XMP)):
            if name == wanted and flags & flag and key not in notes:
                notes[key] = content
        at += 8 + length + (length & 1)
    return {key: content for key, content in notes.items() if content}
