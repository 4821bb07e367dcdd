"""A process that scales pictures down, one after the other. Knows Pillow, standard input and output; no request.

    python -m kimi_serve.gateway.scaling.worker MEMORY_BYTES

What it reads was sent by strangers, so it has a limit of memory, no files to write and nothing of the gateway's
environment, and whoever started it ends it when it takes too long. As in an engine, pictures of all tenants pass
through one process. A job and its result are each one line of JSON and as many bytes as that says.
"""

from __future__ import annotations

import io
import json
import math
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from PIL import Image, ImageOps

READY: Final = b"ready\n"
# A format may be the work of two of Pillow's readers: some cameras write several pictures into one JPEG.
READERS: Final = {
    "JPEG": ("JPEG", "MPO"),
    "PNG": ("PNG",),
    "WebP": ("WEBP",),
    "GIF": ("GIF",),
    "BMP": ("BMP",),
    "TIFF": ("TIFF",),
    "AVIF": ("AVIF",),
}
_PHOTOS: Final = ("JPEG", "WebP", "AVIF")  # have lost something already; PNG would make them many times as large
_GAP: Final = 3.0  # sides over so many times the wanted ones are averaged down to that first: faster, and no worse
Size = tuple[int, int]


class UnfitError(Exception):
    """The picture cannot be scaled: why."""


def scale(data: bytes, kind: str, stated: Size, wanted: Size) -> tuple[str, bytes]:
    """The media type and bytes of the picture, upright, in another size. `stated`: by its header, upright.

    Bicubic, as the model's own processor shrinks pictures: what is scaled here looks to the model like what it was
    trained on. Transparency is kept where the engine looks at it, and colours are made RGB as the engine makes them.
    """
    image: Image.Image = Image.open(io.BytesIO(data), formats=READERS[kind])
    if kind == "JPEG":
        enough = _GAP * max(wanted) / max(image.size)
        # It decodes a half, a quarter or an eighth of each side, where that is enough.
        image.draft(None, (math.ceil(image.width * enough), math.ceil(image.height * enough)))
    image = ImageOps.exif_transpose(image)
    wanted = _turned_like(image.size, stated, wanted)
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGB")
    image = image.resize(wanted, Image.Resampling.BICUBIC, reducing_gap=_GAP)
    image.info = {}  # no orientation a second time, no profile: engines read none
    stored = io.BytesIO()
    if kind in _PHOTOS and image.mode == "RGB":
        image.save(stored, "JPEG", quality=95, subsampling=0)
        return "image/jpeg", stored.getvalue()
    image.save(stored, "PNG", compress_level=3)
    return "image/png", stored.getvalue()


def _turned_like(found: Size, stated: Size, wanted: Size) -> Size:
    """A damaged picture may be unturned, as the engine would see it too: then its sides are swapped, wanted and all."""
    if _is_like(found, stated):
        return wanted
    if _is_like(found, (stated[1], stated[0])):
        return wanted[1], wanted[0]
    raise UnfitError(f"its header states {stated[0]}x{stated[1]} pixels, and it has {found[0]}x{found[1]}")


def _is_like(found: Size, stated: Size) -> bool:
    """Whole, or as a JPEG decoded to a half, a quarter or an eighth, which rounds up."""
    return any(found == (-(-stated[0] // part), -(-stated[1] // part)) for part in (1, 2, 4, 8))


def main(memory: int) -> None:
    _confine(memory)
    Image.MAX_IMAGE_PIXELS = None  # the header was measured, and memory is bounded
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        data = sys.stdin.buffer.read(job["size"])
        if len(data) < job["size"]:
            return
        _answer(sys.stdout.buffer, data, job)


def _answer(out: BinaryIO, data: bytes, job: dict[str, object]) -> None:
    told: dict[str, object]
    result = b""
    try:
        media_type, result = scale(data, str(job["kind"]), _size(job["stated"]), _size(job["wanted"]))
        told = {"media_type": media_type}
    except MemoryError:
        told = {"error": "memory"}
    except UnfitError as error:
        told = {"error": str(error)}
    except Exception:  # the process boundary: Pillow raises whatever comes, and its texts may quote the file
        told = {"error": "its pixels cannot be decoded"}
    out.write(json.dumps({**told, "size": len(result)}).encode() + b"\n")
    out.write(result)
    out.flush()


def _size(given: object) -> Size:
    assert isinstance(given, list)
    width, height = given
    return int(width), int(height)


def _confine(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # where memory runs out, this goes before the gateway does
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(int(sys.argv[1]))
