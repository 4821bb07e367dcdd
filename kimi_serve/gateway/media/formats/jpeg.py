"""JPEG: the last frame header before the first scan. Knows markers; never looks into a scan."""

from __future__ import annotations

from kimi_serve.gateway.media.formats import orientation
from kimi_serve.gateway.media.formats.reading import Found, MalformedError, number, parts, piece

_SOS = 0xDA
_FRAMES = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xDE})
_ALONE = frozenset({0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})  # markers without a segment
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def read(data: bytes) -> Found:
    size: tuple[int, int] | None = None
    notes: orientation.Notes = {}
    exif = bytearray()  # one block may be spread over several segments
    at = 3  # after SOI and the first 0xFF
    for _ in parts():
        marker = number(data, at, 1, "big")
        at += 1
        if marker == 0xFF:  # padding before a marker
            continue
        if 0x01 <= marker < 0xC0:
            raise MalformedError(f"marker {marker:#04x} stands before the picture's data")
        if marker != 0x00 and marker not in _ALONE:
            length = max(0, number(data, at, 2, "big") - 2)
            segment = piece(data, at + 2, length)
            at += 2 + length
            if marker in _FRAMES:
                size = _size(segment)
            elif marker == 0xE1:
                if segment.startswith(_EXIF):
                    exif += segment[len(_EXIF) :] if exif else segment
                elif segment.startswith(_XMP):
                    notes[orientation.XMP] = segment[len(_XMP) :]
            elif marker == _SOS:
                break
        at = data.find(b"\xff", at) + 1
        if at == 0:
            raise MalformedError("no scan follows the header")
    if size is None:
        raise MalformedError("no frame header stands before the picture's data")
    if exif:
        notes[orientation.EXIF] = bytes(exif)
    return Found(*size, orientation.sides_swap(notes))


def _size(segment: bytes) -> tuple[int, int]:
    if len(segment) < 6:
        raise MalformedError("a frame header is too short")
    if segment[0] != 8 or segment[5] not in (1, 3, 4):
        raise MalformedError(f"{segment[5]} components of {segment[0]} bits are not supported; expected 1, 3 or 4 of 8")
    return number(segment, 3, 2, "big"), number(segment, 1, 2, "big")
