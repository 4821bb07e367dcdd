"""Files that are two formats at once: the engine's Pillow would take them for the other one."""

import struct
from collections.abc import Callable

import pytest

from kimi_serve.gateway.media.headers import read_header
from kimi_serve.protocol.errors import ApiError
from tests.gateway.media import pictures
from tests.gateway.media.pictures import chunk, png_with


def spider_in_tiff() -> bytes:
    values = [823968.0] + [0.0] * 26  # the first is the TIFF mark, read as a float
    values[1], values[4], values[11], values[12], values[21], values[22] = 1.0, 1.0, 7.0, 1.0, 28.0, 28.0
    head = b"II\x2a\0" + struct.pack(">26f", *values[1:])
    start = struct.unpack("<L", head[4:8])[0]
    directory = struct.pack("<H", 2) + struct.pack("<HHLLHHLL", 256, 4, 1, 900, 257, 4, 1, 900)
    return head.ljust(start, b"\0") + directory + bytes(4)


def im_in_tiff() -> bytes:
    lines = b":\nImage type: L image\r\nImage size (x*y): 3*2\r\n"
    head = (b"II\x2a\0" + struct.pack("<L", 600) + lines + b"\x1a").ljust(600, b"\0")
    return head + struct.pack("<HHHLLHHLL", 2, 256, 4, 1, 900, 257, 4, 1, 900) + bytes(4)


def photo_cd_in_png() -> bytes:
    data = png_with(before=chunk(b"prVt", bytes(5000)))
    return data[:2048] + b"PCD_" + data[2052:]


def brush_in_tiff() -> bytes:
    start = 0x01000000
    head = b"II\x2a\0" + struct.pack(">LLLL", 1, 5, 4, 1)
    return head.ljust(start, b"\0") + struct.pack("<HHHLLHHLL", 2, 256, 4, 1, 900, 257, 4, 1, 900) + bytes(4)


def film_in_tiff() -> bytes:
    start = 0x0001_AF12  # the upper half is the number of frames
    head = b"II\x2a\0" + struct.pack("<LHHHH", start, 3, 2, 8, 0)
    return head.ljust(start, b"\0") + struct.pack("<HHHLLHHLL", 2, 256, 4, 1, 900, 257, 4, 1, 900) + bytes(4)


@pytest.mark.parametrize(
    ("build", "other"),
    [
        (spider_in_tiff, "Spider"),
        (im_in_tiff, "IM"),
        (photo_cd_in_png, "PhotoCD"),
        (brush_in_tiff, "GBR"),
        (film_in_tiff, "FLI"),
    ],
    ids=["spider", "im", "photo_cd", "gbr", "fli"],
)
def test_a_file_that_pillow_reads_as_another_format_is_refused(build: Callable[[], bytes], other: str) -> None:
    data = build()
    assert pictures.opened_as(data) not in (None, "TIFF", "PNG"), (
        "the disguise does not work: the guard would test nothing"
    )
    with pytest.raises(ApiError) as caught:
        read_header(data)
    assert caught.value.code == "invalid_image"
    assert other in caught.value.message
