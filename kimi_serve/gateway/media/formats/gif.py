"""GIF: the screen, grown to hold the first frame. Knows blocks; decodes no frame."""

from __future__ import annotations

from collections.abc import Iterator

from kimi_serve.gateway.media.formats.reading import Found, MalformedError, number, parts, piece


def read(data: bytes) -> Found:
    width, height = number(data, 6, 2, "little"), number(data, 8, 2, "little")
    flags = number(data, 10, 1, "little")
    at = 13 + ((6 << (flags & 7)) if flags & 0x80 else 0)
    count = parts()
    for _ in count:
        kind = piece(data, at, 1)
        if kind == b",":
            left, top = number(data, at + 1, 2, "little"), number(data, at + 3, 2, "little")
            across, down = number(data, at + 5, 2, "little"), number(data, at + 7, 2, "little")
            return Found(max(width, left + across), max(height, top + down))
        if kind == b";":
            raise MalformedError("it holds no picture")
        at = _after_extension(data, at + 1, count) if kind == b"!" else at + 1
    raise AssertionError("parts() ends in an error")


def _after_extension(data: bytes, at: int, count: Iterator[int]) -> int:
    """Skip an extension, with Pillow's habits: one that is empty at once runs on into what follows, comments do not."""
    label = number(data, at, 1, "little")
    first, at = _block(data, at + 1)
    if label == 0xF9 and len(first) < 4:
        raise MalformedError("a graphic control extension is too short")
    if label == 0xFE and not first:
        return at
    if label == 0xFF and first.startswith(b"NETSCAPE2.0"):
        _, at = _block(data, at)
    for _ in count:
        block, at = _block(data, at)
        if not block:
            return at
    raise AssertionError("parts() ends in an error")


def _block(data: bytes, at: int) -> tuple[bytes, int]:
    length = number(data, at, 1, "little")
    return piece(data, at + 1, length), at + 1 + length
