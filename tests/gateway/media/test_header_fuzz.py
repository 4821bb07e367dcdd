"""Damaged headers: no error but ours, and never another size than the engine's. KIMI_SERVE_FUZZ sets the examples."""

import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kimi_serve.gateway.media.headers import read_header
from kimi_serve.protocol.errors import ApiError
from tests.gateway.media import pictures
from tests.gateway.media.pictures import chunk, exif_block, jpeg_with, png_with, saved

EXAMPLES = int(os.environ.get("KIMI_SERVE_FUZZ", "2100"))
XMP = b'tiff:Orientation="6"'
SEEDS = {
    "JPEG": [saved("JPEG"), jpeg_with((0xE1, b"Exif\0\0" + exif_block(3, b"\6\0"))), saved("JPEG", progressive=True)],
    "PNG": [
        saved("PNG"),
        png_with(chunk(b"eXIf", exif_block(3, b"\6\0")), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
    ],
    "WebP": [saved("WEBP"), saved("WEBP", lossless=True), saved("WEBP", exif=pictures.exif(6), xmp=XMP)],
    "GIF": [saved("GIF"), saved("GIF", "P", comment=b"a comment", transparency=0)],
    "BMP": [saved("BMP"), saved("BMP", "P"), saved("BMP", "RGBA")],
    "TIFF": [pictures.tiff([(274, 3, 1, b"\6\0")]), pictures.tiff([(274, 3, 1, b"\0\6")], ">"), saved("TIFF")],
    "AVIF": [saved("AVIF"), saved("AVIF", exif=pictures.exif(6))],
}
SPECIAL = (0, 1, 2, 6, 0x7F, 0x80, 0xFF)

edit = st.tuples(st.integers(0, 400), st.sampled_from(SPECIAL) | st.integers(0, 255))
edits = st.lists(edit, max_size=4)
splice = st.tuples(st.integers(0, 400), st.integers(0, 8), st.binary(max_size=8))


@pytest.mark.parametrize("kind", SEEDS)
def test_a_damaged_header_is_refused_or_measured_as_the_engine_does(kind: str) -> None:
    @settings(
        max_examples=EXAMPLES // len(SEEDS), deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.sampled_from(SEEDS[kind]), edits, st.none() | splice, st.none() | st.integers(0, 600))
    def check(
        seed: bytes, changes: list[tuple[int, int]], cut_in: tuple[int, int, bytes] | None, end: int | None
    ) -> None:
        data = bytearray(seed)
        for place, value in changes:
            data[place % len(data)] = value
        if cut_in is not None:
            place, length, new = cut_in
            data[place : place + length] = new
        compare(bytes(data[:end]))

    check()


def compare(data: bytes) -> None:
    start = time.process_time()
    try:
        header = read_header(data, max_pixels=pictures.MAX_PIXELS)
    except ApiError as error:
        assert error.code in ("invalid_image", "unsupported_media_type", "image_too_large")  # noqa: PT017
        header = None
    assert time.process_time() - start < 5
    if header is not None:
        seen, size = pictures.engine_size(data), (header.width, header.height)
        assert seen in (None, size) or (seen == size[::-1] and pictures.has_broken_data(data))
