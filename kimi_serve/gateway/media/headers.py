"""A picture's format and size, from its first bytes and what they point to. Knows headers; decodes no pixel.

The size is the one that the engine will see: its Pillow's, after the orientation in EXIF or XMP is applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kimi_serve.gateway.media.formats import avif, bmp, disguise, gif, jpeg, png, tiff, webp
from kimi_serve.gateway.media.formats.reading import Found, MalformedError
from kimi_serve.protocol.errors import ApiError

MAX_PIXELS: Final = 89_478_485  # Pillow warns above it, and refuses twice that
MAX_SIDE: Final = 65_535  # pixels


@dataclass(frozen=True, slots=True)
class PictureHeader:
    format: str  # a key of READERS
    width: int  # as the engine sees it
    height: int


READERS: Final[dict[str, Callable[[bytes], Found]]] = {
    "JPEG": jpeg.read,
    "PNG": png.read,
    "WebP": webp.read,
    "GIF": gif.read,
    "BMP": bmp.read,
    "TIFF": tiff.read,
    "AVIF": avif.read,
}

MEDIA_TYPES: Final = {name: f"image/{name.lower()}" for name in READERS}

# Recognised in order to say no by name; Pillow, with which the engine decodes, cannot open them or not safely.
REFUSED: Final[dict[str, str]] = {
    "HEIC": "convert it to JPEG, or send AVIF",
    "AVIF sequence": "send one still picture",
    "JPEG XL": "convert it to JPEG or PNG",
    "SVG": "render it to PNG",
    "PDF": "send it as a file, in Messages as a document",
}

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> PictureHeader:
    """Measure a picture. ApiError: unsupported_media_type, invalid_image or image_too_large."""
    name = _format(data)
    try:
        found = READERS[name](data)
    except MalformedError as error:
        raise ApiError("invalid_image", f"image: this {name} file cannot be read: {error}") from error
    other = disguise.other_reader(data)
    if other is not None:
        raise ApiError("invalid_image", f"image: this {name} file can also be read as {other}; save it again")
    width, height = (found.height, found.width) if found.sides_swap else (found.width, found.height)
    if width < 1 or height < 1:
        raise ApiError("invalid_image", f"image: this {name} file states a size of {width}x{height} pixels")
    if width * height > max_pixels or max(width, height) > max_side:
        raise ApiError(
            "image_too_large",
            f"image: {width}x{height} is over the limit of {max_pixels} pixels and {max_side} a side; scale it down",
        )
    return PictureHeader(name, width, height)


def _format(data: bytes) -> str:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith(tiff.HEADS):
        return "TIFF"
    if avif.is_still(data):
        return "AVIF"
    raise _unsupported(data)


def _unsupported(data: bytes) -> ApiError:
    supported = f"supported are {', '.join(READERS)}"
    name = _refused_name(data)
    if name is None:
        return ApiError("unsupported_media_type", f"image: the bytes are no picture that is served; {supported}")
    return ApiError("unsupported_media_type", f"image: {name} is not supported: {REFUSED[name]}; {supported}")


def _refused_name(data: bytes) -> str | None:
    start = data[:256].lstrip()
    if data[4:8] == b"ftyp" and data[8:12] == b"avis":
        return "AVIF sequence"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "HEIC"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL"
    if start.startswith(b"%PDF"):
        return "PDF"
    if b"<svg" in data[:1024]:
        return "SVG"
    return None
