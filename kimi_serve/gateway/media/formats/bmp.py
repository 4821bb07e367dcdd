"""BMP: the bitmap header that follows the file header. Knows nothing of rows or palettes."""

from __future__ import annotations

from kimi_serve.gateway.media.formats.reading import Found, MalformedError, number, piece

_CORE = 12
_HEADERS = (40, 52, 56, 64, 108, 124)
_BITFIELDS = 3


def read(data: bytes) -> Found:
    size = number(data, 14, 4, "little")
    if size == _CORE:
        piece(data, 14, _CORE)
        return Found(number(data, 18, 2, "little"), number(data, 20, 2, "little"))
    if size not in _HEADERS:
        raise MalformedError(f"a bitmap header of {size} bytes is not supported")
    piece(data, 14, size)
    if number(data, 30, 4, "little") == _BITFIELDS:
        piece(data, 54, 12)
    height = number(data, 22, 4, "little")
    if data[25] == 0xFF:  # negative: rows from the top down
        height = 2**32 - height
    return Found(number(data, 18, 4, "little"), height)
