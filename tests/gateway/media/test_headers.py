"""The size of a picture is what the engine's Pillow makes of it; the oracle is Pillow, by vLLM's own steps."""

import struct
import time
import zlib

import pytest
from PIL import Image

from kimi_serve.gateway.media.headers import READERS, REFUSED, PictureHeader, read_header
from kimi_serve.protocol.errors import ApiError
from tests.gateway.media import pictures
from tests.gateway.media.pictures import SIZE, chunk, engine_size, exif_block, jpeg_with, png_with, saved

TURNED = SIZE[::-1]
XMP_6 = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
ADOBE = b"http://ns.adobe.com/xap/1.0/\0"


def measured(data: bytes) -> tuple[int, int]:
    header = read_header(data)
    return header.width, header.height


def refused(data: bytes, **limits: int) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read_header(data, **limits)
    return caught.value


def webp_with(*chunks: tuple[bytes, bytes], flags: int) -> bytes:
    body = saved("WEBP")[12:]
    width, height = (side - 1 for side in SIZE)
    extended = struct.pack("<4sLL", b"VP8X", 10, flags) + width.to_bytes(3, "little") + height.to_bytes(3, "little")
    for name, content in chunks:
        body += struct.pack("<4sL", name, len(content)) + content + bytes(len(content) & 1)
    inside = b"WEBP" + extended + body
    return b"RIFF" + struct.pack("<L", len(inside)) + inside


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in pictures.MODES.items() for mode in modes])
def test_every_format_and_mode_is_measured_as_the_engine_does(kind: str, mode: str) -> None:
    data = saved(kind, mode)
    assert read_header(data) == PictureHeader(kind, *SIZE)
    assert engine_size(data) == SIZE


@pytest.mark.parametrize("kind", pictures.WITH_EXIF)
@pytest.mark.parametrize("orientation", range(10))
def test_the_size_is_the_one_after_exif_orientation(kind: str, orientation: int) -> None:
    data = saved(kind, exif=pictures.exif(orientation))
    assert measured(data) == engine_size(data) == (TURNED if orientation in (5, 6, 7, 8) else SIZE)


def test_lossless_and_animated_webp_are_measured() -> None:
    still, frame = saved("WEBP", lossless=True), Image.new("RGB", SIZE, "red")
    moving = saved("WEBP", save_all=True, append_images=[frame], exif=pictures.exif(6))
    assert (still[12:16], moving[12:16]) == (b"VP8L", b"VP8X")
    assert measured(still) == engine_size(still) == SIZE
    assert measured(moving) == engine_size(moving) == TURNED


@pytest.mark.parametrize(
    ("kind", "value", "count"),
    [
        (3, struct.pack("<H", 6), 1),
        (3, struct.pack("<HH", 6, 1), 2),
        (4, struct.pack("<L", 6), 1),
        (1, b"\6", 1),
        (2, b"6\0", 2),
        (7, b"\6", 1),
        (8, struct.pack("<h", 6), 1),
        (5, struct.pack("<LL", 12, 2), 1),
        (5, struct.pack("<LL", 6, 0), 1),
        (5, struct.pack("<LL", 13, 2), 1),
        (11, struct.pack("<f", 6), 1),
        (12, struct.pack("<d", 6), 1),
        (99, b"\6", 1),
        (3, b"", 0),
        (3, struct.pack("<H", 6), 1000),
    ],
)
def test_an_orientation_of_an_unusual_type_counts_as_it_does_for_pillow(kind: int, value: bytes, count: int) -> None:
    block = exif_block(kind, value, count=count)
    for data in (jpeg_with((0xE1, b"Exif\0\0" + block)), png_with(chunk(b"eXIf", block))):
        assert measured(data) == engine_size(data)


@pytest.mark.parametrize(
    ("order", "block"),
    [
        ("big", exif_block(3, struct.pack(">H", 6), order=">")),
        ("twice prefixed", b"Exif\0\0" + exif_block(3, struct.pack("<H", 6))),
        ("empty", b""),
        ("garbage", b"not a TIFF block"),
        ("BigTIFF", b"II\x2b\0" + exif_block(3, struct.pack("<H", 6))[4:]),
        ("directory past the end", b"II\x2a\0\xff\xff\0\0"),
    ],
)
def test_a_strange_exif_block_counts_as_it_does_for_pillow(order: str, block: bytes) -> None:
    for xmp in ((), ((0xE1, ADOBE + XMP_6),)):
        data = jpeg_with((0xE1, b"Exif\0\0" + block), *xmp)
        assert measured(data) == engine_size(data), order


def test_exif_spread_over_jpeg_segments_is_joined() -> None:
    block = exif_block(3, struct.pack("<H", 6))
    data = jpeg_with((0xE1, b"Exif\0\0" + block[:13]), (0xE1, b"Exif\0\0" + block[13:]))
    assert measured(data) == engine_size(data) == TURNED


def test_xmp_orientation_counts_where_exif_is_silent() -> None:
    upright = exif_block(3, struct.pack("<H", 1))
    by_xmp = jpeg_with((0xE1, ADOBE + XMP_6))
    by_exif = jpeg_with((0xE1, ADOBE + XMP_6), (0xE1, b"Exif\0\0" + upright))
    webp = webp_with((b"XMP ", XMP_6), flags=0x04)
    assert measured(by_xmp) == engine_size(by_xmp) == TURNED
    assert measured(by_exif) == engine_size(by_exif) == SIZE
    assert measured(webp) == engine_size(webp) == TURNED


@pytest.mark.parametrize("flags", [0x00, 0x04, 0x08, 0x0C])
def test_webp_metadata_count_only_where_the_flags_announce_them(flags: int) -> None:
    data = webp_with((b"EXIF", b""), (b"EXIF", exif_block(3, b"\6\0")), (b"XMP ", XMP_6), flags=flags)
    assert measured(data) == engine_size(data)


RAW_PROFILE = f"\nexif\n{26:8}\n{exif_block(3, struct.pack('<H', 6)).hex()}\n".encode()
PNG_NOTES = {
    "eXIf": chunk(b"eXIf", exif_block(3, b"\6\0")),
    "raw profile in tEXt": chunk(b"tEXt", b"Raw profile type exif\0" + RAW_PROFILE),
    "raw profile in zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE)),
    "raw profile broken": chunk(b"tEXt", b"Raw profile type exif\0a\nb\nc\nzz"),
    "broken zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0garbage"),
    "exif in tEXt": chunk(b"tEXt", b"exif\0" + exif_block(3, b"\6\0")),
    "exif in zTXt": chunk(b"zTXt", b"exif\0\0" + zlib.compress(exif_block(3, b"\6\0"))),
    "XMP in iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_6),
    "XMP compressed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP_6)),
    "XMP not UTF-8": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff" + XMP_6),
    "XMP in tEXt": chunk(b"tEXt", b"XML:com.adobe.xmp\0" + XMP_6),
    "xmp in tEXt": chunk(b"tEXt", b"xmp\0" + XMP_6),
    "no keyword's end": chunk(b"tEXt", b"xmp"),
    "short iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0"),
    "another note": chunk(b"tEXt", b"Comment\0" + XMP_6),
    "two notes": chunk(b"eXIf", exif_block(3, b"\6\0")) + chunk(b"eXIf", exif_block(3, b"\1\0")),
    "EXIF without orientation, then XMP": chunk(b"eXIf", b"II\x2a\0\x08\0\0\0\0\0")
    + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_6),
}


@pytest.mark.parametrize("note", PNG_NOTES)
@pytest.mark.parametrize("place", ["before", "after"])
def test_png_notes_on_orientation_count_before_and_after_the_data(note: str, place: str) -> None:
    data = png_with(**{place: PNG_NOTES[note]})
    assert measured(data) == engine_size(data)


def test_notes_after_the_first_frame_of_an_animated_png_do_not_count() -> None:
    frame = Image.new("RGB", SIZE, "red")
    moving = saved("PNG", save_all=True, append_images=[frame])
    at = moving.index(b"IEND") - 4
    data = moving[:at] + PNG_NOTES["eXIf"] + moving[at:]
    assert moving.count(b"fcTL") == 2
    assert measured(data) == engine_size(data) == SIZE


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_tiff_of_both_byte_orders_and_widths_is_measured_or_refused_as_by_pillow(order: str, big: bool) -> None:
    data = pictures.tiff([(274, 3, 1, struct.pack(f"{order}H", 6))], order, big=big)
    if (order, big) == (">", True):
        assert engine_size(data) is None
        assert refused(data).code == "unsupported_media_type"
    else:
        assert measured(data) == engine_size(data) == TURNED


@pytest.mark.parametrize("kind", [1, 2, 7])
def test_xmp_in_a_tiff_counts_if_pillow_gets_bytes_of_it(kind: int) -> None:
    plain = pictures.tiff([(700, kind, len(XMP_6), struct.pack("<L", 2000))])
    data = plain.ljust(2000, b"\0") + XMP_6
    assert measured(data) == engine_size(data) == (SIZE if kind == 2 else TURNED)


def test_a_gif_grows_to_hold_its_first_frame() -> None:
    data = bytearray(saved("GIF"))
    data[6:10] = struct.pack("<HH", 5, 5)
    assert measured(bytes(data)) == engine_size(bytes(data)) == SIZE


@pytest.mark.parametrize(
    "extension",
    [
        b"!\xfe\0",
        b"!\xfe\3abc\0",
        b"!\xff\0\0",
        b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0",
        b"!\x01\0\2ab\0",
        b"!\xf9\4\1\0\0\0\0",
        b"??",
    ],
)
def test_gif_extensions_are_skipped_as_pillow_skips_them(extension: bytes) -> None:
    plain = saved("GIF")
    at = 13 + (6 << (plain[10] & 7))
    data = plain[:at] + extension + plain[at:]
    assert measured(data) == engine_size(data) == SIZE


def test_bmp_rows_from_the_top_and_the_old_header_are_measured() -> None:
    top_down = bytearray(saved("BMP"))
    top_down[22:26] = struct.pack("<l", -SIZE[1])
    old = b"BM" + struct.pack("<LLL", 0, 0, 26) + struct.pack("<LHHHH", 12, *SIZE, 1, 24) + bytes(112 * SIZE[1])
    assert measured(bytes(top_down)) == engine_size(bytes(top_down)) == SIZE
    assert measured(old) == engine_size(old) == SIZE


def test_avif_whose_xmp_alone_turns_it_is_refused() -> None:
    error = refused(saved("AVIF", xmp=XMP_6))
    assert error.code == "invalid_image"
    assert "save it upright" in error.message


def test_avif_turned_by_irot_does_not_ask_the_xmp() -> None:
    data = saved("AVIF", exif=pictures.exif(6), xmp=XMP_6)
    assert measured(data) == engine_size(data) == TURNED


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypavis\0\0\0\0avisavif", "AVIF sequence"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
    ],
)
def test_a_known_format_that_is_not_served_is_refused_by_name(data: bytes, name: str) -> None:
    error = refused(data)
    assert error.code == "unsupported_media_type"
    assert name in REFUSED
    assert name in error.message
    assert all(supported in error.message for supported in READERS)


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"<html>", b"\0" * 100, b"RIFF\0\0\0\0WAVE", b"\x93NUMPY\1\0"])
def test_other_bytes_are_refused_with_what_is_supported(data: bytes) -> None:
    error = refused(data)
    assert error.code == "unsupported_media_type"
    assert "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF" in error.message


@pytest.mark.parametrize("kind", pictures.MODES)
def test_a_file_cut_inside_its_header_is_refused(kind: str) -> None:
    data = saved(kind)
    # Pillow's TIFF reader takes a directory that is cut off for a shorter one, and fails later.
    for length in range(12, {"GIF": 13, "BMP": 40, "AVIF": 200, "JPEG": 150}.get(kind, 25)):
        assert refused(data[:length]).code in ("invalid_image", "unsupported_media_type")


@pytest.mark.parametrize(
    ("limits", "is_fine"),
    [
        ({"max_pixels": SIZE[0] * SIZE[1], "max_side": max(SIZE)}, True),
        ({"max_pixels": SIZE[0] * SIZE[1] - 1}, False),
        ({"max_side": max(SIZE) - 1}, False),
    ],
)
def test_pixels_and_sides_over_the_limit_are_refused(limits: dict[str, int], is_fine: bool) -> None:
    if is_fine:
        assert read_header(saved("PNG"), **limits).width == SIZE[0]
    else:
        error = refused(saved("PNG"), **limits)
        assert error.code == "image_too_large"
        assert "37x21" in error.message


def test_a_size_of_zero_is_refused() -> None:
    data = bytearray(saved("PNG"))
    data[16:20] = bytes(4)
    assert refused(bytes(data)).code == "invalid_image"


COSTLY = {
    "JPEG of markers": b"\xff\xd8\xff" + b"\x00\xff" * 1_000_000,
    "JPEG of padding": b"\xff\xd8" + b"\xff" * 2_000_000,
    "PNG of empty chunks": saved("PNG")[:33] + chunk(b"prVt", b"") * 100_000,
    "PNG of bombs": saved("PNG")[:33] + chunk(b"zTXt", b"xmp\0\0" + zlib.compress(bytes(1_000_000))) * 1000,
    "GIF of blocks": saved("GIF")[:13] + bytes(768) + b"!\xfe" + b"\1a" * 1_000_000,
    "GIF of junk": saved("GIF")[:13] + b"?" * 2_000_000,
    "GIF of extensions": saved("GIF")[:13] + bytes(768) + b"!\xfe\0" * 500_000,
    "BigTIFF of tags": b"II\x2b\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(2_000_000),
    "AVIF of boxes": saved("AVIF")[:32] + struct.pack(">L4s", 8, b"free") * 100_000,
    "WebP of chunks": b"RIFF" + struct.pack("<L", 800_022) + b"WEBPVP8X\x0a\0\0\0" + bytes(800_010),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_header_of_many_parts_is_refused_within_bounded_time(name: str) -> None:
    start = time.process_time()
    assert refused(COSTLY[name]).code == "invalid_image"
    assert time.process_time() - start < 5  # reading on and on would take minutes
