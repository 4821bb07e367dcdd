"""What a picture shows: words, numbers, shapes. Knows the lexicon and the splits; asks nothing about the picture."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator

from nano.pictures import COLOURS, SHAPES, Canvas, Picture, Shape, Style, Text, add_shape, add_text, canvas

CONSONANTS, VOWELS = "bcdfghjklmnprstvwyz", "aeiou"


@lru_cache(maxsize=32)
def lexicon(held_out: bool, longest: int = 7) -> tuple[str, ...]:
    """One word in ten is never printed in a training picture."""
    words = (Path(__file__).parent / "words.txt").read_text().split()
    return tuple(w for w in words if (zlib.crc32(w.encode()) % 10 == 0) == held_out and len(w) <= longest)


def invented(rng: Generator) -> str:
    """A pronounceable non-word, so that reading cannot be guessing."""
    length = int(rng.integers(3, 7))
    return "".join(str(rng.choice(list(CONSONANTS if k % 2 == 0 else VOWELS))) for k in range(length))


def word(rng: Generator, style: Style, longest: int) -> str:
    if not style.held_out and rng.random() < 0.25:
        text = invented(rng)
    else:
        words = lexicon(style.held_out, longest)
        text = words[int(rng.integers(len(words)))]
    return text.upper()


def number(rng: Generator, longest: int) -> str:
    """Uniform in its length, so that long numbers are not the rule."""
    length = int(rng.integers(1, longest + 1))
    return str(rng.integers(10 ** (length - 1) if length > 1 else 0, 10**length))


def text_scene(width: int, height: int, rng: Generator, style: Style) -> Picture:
    """A word, a number, or both, sometimes with a shape beside them."""
    on = canvas(width, height, rng, style)
    kinds = [("word",), ("number",), ("word", "number")][int(rng.choice(3, p=(0.3, 0.3, 0.4)))]
    texts: list[Text | None] = []
    longest = max(3, min(5, (width - 6) // 16))
    for kind in kinds:
        content = word(rng, style, longest) if kind == "word" else number(rng, 3)
        texts.append(add_text(on, kind, content, rng, style))
    shapes = fill(on, int(rng.choice(3, p=(0.6, 0.25, 0.15))), 14, rng, style)
    return Picture(np.asarray(on.image), tuple(shapes), tuple(t for t in texts if t is not None))


def page_scene(width: int, height: int, rng: Generator, style: Style) -> Picture:
    """As many words, numbers and shapes as fit: much to see for one pass of the tower."""
    on = canvas(width, height, rng, style)
    shapes = fill(on, int(rng.integers(0, 3)), 18, rng, style)
    longest = max(3, min(6, (width - 6) // 16))
    texts: list[Text | None] = []
    for _ in range(14):
        kind = "word" if rng.random() < 0.6 else "number"
        content = word(rng, style, longest) if kind == "word" else number(rng, 3)
        texts.append(add_text(on, kind, content, rng, style))
    return Picture(np.asarray(on.image), tuple(shapes), tuple(t for t in texts if t is not None))


def shape_scene(width: int, height: int, rng: Generator, style: Style, most: int = 6) -> Picture:
    """One to six shapes; a few colours and kinds repeat, so that counting by colour or kind has something to count."""
    on = canvas(width, height, rng, style)
    # Few shapes more often than many: one alone is where naming and pointing begin.
    share = np.array([8, 2, 1, 1, 1, 1][:most])
    count = 1 + int(rng.choice(most, p=share / share.sum()))
    shapes = fill(on, count, 24 if count < 3 else 15, rng, style)
    return Picture(np.asarray(on.image), tuple(shapes), ())


def fill(on: Canvas, count: int, largest: int, rng: Generator, style: Style) -> list[Shape]:
    kinds = [str(k) for k in rng.choice(SHAPES, int(rng.integers(1, 5)))]
    colours = [str(c) for c in rng.choice(COLOURS, int(rng.integers(1, 5)))]
    shapes: list[Shape] = []
    for _ in range(3 * count):
        if len(shapes) == count:
            break
        shape = add_shape(on, str(rng.choice(kinds)), str(rng.choice(colours)), largest, rng, style)
        if shape is None:
            colours.append(str(rng.choice(COLOURS)))
        else:
            shapes.append(shape)
    return shapes
