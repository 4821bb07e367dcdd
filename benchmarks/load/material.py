"""Photographs, screenshots, PDFs and films, made by code from a seed. Knows formats; not what is asked about them."""

from __future__ import annotations

import io
import random
from fractions import Fraction
from functools import lru_cache
from typing import Final

from PIL import Image, ImageDraw

_CELL: Final = 16  # pixels that one value of a photograph's noise is stretched over
_KEPT: Final = 512
# fmt: off
WORDS: Final = (
    "river", "stone", "window", "garden", "morning", "letter", "market", "silver", "quiet", "number", "engine",
    "paper", "winter", "yellow", "table", "forest", "question", "answer", "people", "music", "harbour", "bridge",
    "signal", "copper", "lantern", "shadow", "voyage", "island", "meadow", "thunder", "compass", "village",
)
# fmt: on


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(WORDS, k=count))


@lru_cache(maxsize=_KEPT)
def photograph(seed: str, size: tuple[int, int]) -> bytes:
    """A JPEG of soft colours with a grain, some tenths of a byte a pixel as a camera's."""
    draw, (width, height) = random.Random(seed), size
    columns, rows = max(2, width // _CELL), max(2, height // _CELL)
    coarse = Image.frombytes("RGB", (columns, rows), draw.randbytes(3 * columns * rows))
    grain = Image.frombytes("L", (width // 2, height // 2), draw.randbytes((width // 2) * (height // 2)))
    soft = coarse.resize(size, Image.Resampling.BICUBIC)
    grainy = Image.merge("RGB", [grain.resize(size)] * 3)
    return _encoded(Image.blend(soft, grainy, 0.1), "JPEG", quality=85)


@lru_cache(maxsize=_KEPT)
def screenshot(seed: str, size: tuple[int, int]) -> bytes:
    """A PNG of windows with text."""
    draw, (width, height) = random.Random(seed), size
    image = Image.new("RGB", size, _colour(draw))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = draw.randrange(width // 2), draw.randrange(height // 2)
        pen.rectangle((left, top, left + width // 3, top + height // 3), fill=_colour(draw), outline=(0, 0, 0))
        for line in range(4):
            pen.text((left + 4, top + 4 + 12 * line), words(draw, 4), fill=(0, 0, 0))
    return _encoded(image, "PNG")


def document(seed: str, pages: int) -> bytes:
    """A PDF of A4 pages with lines of text and a bar of colour."""
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    draw, buffer = random.Random(seed), io.BytesIO()
    canvas = Canvas(buffer, pagesize=A4, invariant=True)
    for page in range(1, pages + 1):
        canvas.setFillColorRGB(draw.random(), draw.random(), draw.random())
        canvas.rect(50, 740, draw.randint(100, 500), 40, stroke=0, fill=1)
        canvas.setFillColorRGB(0, 0, 0)
        canvas.drawString(50, 710, f"Page {page} of {pages}")
        for line in range(40):
            canvas.drawString(50, 690 - 16 * line, words(draw, 11))
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def film(seed: str, size: tuple[int, int], seconds: int, rate: int = 5) -> bytes:
    """An MP4 in which a box crosses a photograph."""
    import av

    buffer, background = io.BytesIO(), Image.open(io.BytesIO(photograph(seed, size)))
    width, height = (side // 2 * 2 for side in size)  # its colours are stored at half the resolution
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number in range(rate * seconds):
            shown = background.copy()
            left = (width - 40) * number // (rate * seconds)
            ImageDraw.Draw(shown).rectangle((left, height // 3, left + 40, height // 3 + 40), fill=(255, 0, 0))
            frame = av.VideoFrame.from_image(shown)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def _colour(draw: random.Random) -> tuple[int, int, int]:
    return draw.randrange(128, 256), draw.randrange(128, 256), draw.randrange(128, 256)


def _encoded(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
