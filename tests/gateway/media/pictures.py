"""Picture files to measure, and what the engine sees in them. Knows Pillow and vLLM's way to open; never runs vLLM."""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

SIZE = (37, 21)
MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WebP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"),
    "AVIF": ("RGB", "RGBA"),
}
WITH_EXIF = ("JPEG", "PNG", "WebP", "TIFF", "AVIF")
MAX_PIXELS = 1 << 16  # of what the oracle decodes


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = SIZE, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[274] = orientation
    return block


def exif_block(kind: int, value: bytes, *, order: str = "<", count: int = 1) -> bytes:
    """Build a TIFF block whose only tag is an orientation of the given type."""
    head = b"II\x2a\0\x08\0\0\0" if order == "<" else b"MM\0\x2a\0\0\0\x08"
    inline = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(f"{order}L", 26)
    block = head + struct.pack(f"{order}HHHL", 1, 274, kind, count) + inline + bytes(4)
    return block + (value if len(value) > 4 else b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def png_with(before: bytes = b"", after: bytes = b"") -> bytes:
    """Put chunks before the data and after them."""
    plain = saved("PNG")
    data_at, end_at = plain.index(b"IDAT") - 4, plain.index(b"IEND") - 4
    return plain[:data_at] + before + plain[data_at:end_at] + after + plain[end_at:]


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """Put segments right after the start of the image."""
    inserted = b"".join(struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body for kind, body in segments)
    plain = saved("JPEG")
    return plain[:2] + inserted + plain[2:]


def tiff(tags: list[tuple[int, int, int, bytes]], order: str = "<", *, big: bool = False) -> bytes:
    """Build a grey TIFF of SIZE whose directory holds these tags besides the necessary ones; values are inline."""
    width, height = SIZE
    start = 16 if big else 8
    pixels = start + (8 + 20 * 20 if big else 2 + 12 * 20) + 8
    number = lambda value: struct.pack(f"{order}L", value)  # noqa: E731
    entries = [(256, 4, 1, number(width)), (257, 4, 1, number(height)), (258, 3, 1, struct.pack(f"{order}H", 8))]
    entries += [(259, 3, 1, struct.pack(f"{order}H", 1)), (262, 3, 1, struct.pack(f"{order}H", 1))]
    entries += [(273, 4, 1, number(pixels)), (278, 4, 1, number(height)), (279, 4, 1, number(width * height)), *tags]
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, start)
        body = struct.pack(f"{order}Q", len(entries))
        body += b"".join(struct.pack(f"{order}HHQ", *entry[:3]) + entry[3].ljust(8, b"\0") for entry in entries)
    else:
        head = mark + struct.pack(f"{order}HL", 42, start)
        body = struct.pack(f"{order}H", len(entries))
        body += b"".join(struct.pack(f"{order}HHL", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return (head + body + bytes(8)).ljust(pixels, b"\0") + bytes(width * height)


@cache
def _vllm_image() -> ModuleType:
    """vLLM's own file on opening images, by itself: it needs Pillow only."""
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or not vllm.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    path = Path(next(iter(vllm.submodule_search_locations))) / "multimodal" / "image.py"
    spec = importlib.util.spec_from_file_location("vllm_multimodal_image", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def engine_size(data: bytes) -> tuple[int, int] | None:
    """Return what the engine measures, by the steps of vLLM's ImageMediaIO.load_bytes; None where it refuses."""
    vllm = _vllm_image()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as errors they would change what Pillow does
        try:
            image = vllm.open_image(io.BytesIO(data))
            assert image.width * image.height <= MAX_PIXELS, "the engine sees many more pixels"
            image = vllm.normalize_image(image)
            image.load()
        except AssertionError:
            raise
        except Exception:
            return None
    return image.size


def opened_as(data: bytes) -> str | None:
    """Return the name of the format that the engine's Pillow takes the bytes for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _vllm_image().open_image(io.BytesIO(data)) as image:
                return image.format
        except Exception:
            return None


def has_broken_data(data: bytes) -> bool:
    """Whether decoding fails: vLLM then keeps the part that was decoded, unturned, which no header can tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _vllm_image().open_image(io.BytesIO(data)).load()
        except Exception:
            return True
    return False
