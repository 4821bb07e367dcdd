"""Pictures for requests, as parts with data URLs. Knows PIL and file formats; never a server."""

import base64
import io
import struct
import zlib
from pathlib import Path

from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 40)) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour))


def noise(width: int, height: int) -> bytes:
    return encoded(Image.effect_noise((width, height), 50))


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def part(data: bytes, media_type: str = "image/png") -> dict[str, object]:
    return at(data_url(data, media_type))


def at(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict[str, object]:
    return {"type": "text", "text": words}


def huge_png(width: int, height: int) -> bytes:
    """Kilobytes that decode to width * height pixels: one bit each, all black."""
    row = bytes(1 + (width + 7) // 8)
    squeeze = zlib.compressobj(9)
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", pixels), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
