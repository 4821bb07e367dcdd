"""What a picture shows: words, numbers, shapes. Knows the lexicon and the splits; asks nothing about the picture."""

from __future__ import annotations

import string
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator

from nano.fonts import font
from nano.pictures import (
    COLOURS,
    SHAPES,
    Canvas,
    Picture,
    Shape,
    Style,
    Text,
    add_shape,
    add_text,
    canvas,
    ink,
    place_shape,
    print_at,
)

ALPHABET = string.ascii_uppercase
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


def simple_scene(width: int, height: int, rng: Generator, style: Style) -> Picture:
    """One thing, sometimes two: what a decoder first learns to look for."""
    on = canvas(width, height, rng, style)
    if rng.random() < 0.35:
        shapes = fill(on, 1 + int(rng.random() < 0.3), 24, rng, style)
        return Picture(np.asarray(on.image), tuple(shapes), ())
    kind = "word" if rng.random() < 0.6 else "number"
    content = number(rng, 3) if kind == "number" else letters(rng)[:4] if rng.random() < 0.5 else word(rng, style, 4)
    text = add_text(on, kind, content, rng, style)
    return Picture(np.asarray(on.image), (), (text,) if text else ())


def text_scene(width: int, height: int, rng: Generator, style: Style) -> Picture:
    """A word, a number, or both, sometimes with a shape beside them."""
    on = canvas(width, height, rng, style)
    kinds = [("word",), ("number",), ("word", "number")][int(rng.choice(3, p=(0.3, 0.3, 0.4)))]
    texts: list[Text | None] = []
    longest = max(3, min(5, (width - 6) // 22))
    for kind in kinds:
        content = word(rng, style, longest) if kind == "word" else number(rng, 3)
        texts.append(add_text(on, kind, content, rng, style))
    shapes = fill(on, int(rng.choice(3, p=(0.6, 0.25, 0.15))), 14, rng, style)
    return Picture(np.asarray(on.image), tuple(shapes), tuple(t for t in texts if t is not None))


def page_scene(width: int, height: int, rng: Generator, style: Style) -> Picture:
    """Lines of words and numbers from top to bottom, with here and there a shape: much to see in one picture."""
    on = canvas(width, height, rng, style)
    texts: list[Text] = []
    shapes: list[Shape] = []
    y = float(rng.integers(2, 12))
    while True:
        size = style.font_size(rng, style.max_font)
        if y + 0.8 * size > height - 2:
            return Picture(np.asarray(on.image), tuple(shapes), tuple(texts))
        face, fill = font(str(rng.choice(style.fonts)), size), ink(on.background, rng, style)
        x = float(rng.integers(2, 14))
        while x < width - 24:
            if rng.random() < 0.15:
                radius = style.radius(rng, 14)
                shape = place_shape(on, x + radius, y + radius, radius, rng, style)
                shapes += [shape] if shape else []
                x += 2 * radius + 6
                continue
            kind = "word" if rng.random() < 0.6 else "number"
            content = letters(rng) if kind == "word" else number(rng, 3)
            left, _, right, _ = face.getbbox(content)
            if x + right - left > width - 2:
                break
            texts.append(print_at(on, kind, content, face, x, y, fill))
            x += right - left + size * (0.35 + 0.4 * float(rng.random()))
        y += 0.8 * size + float(rng.integers(3, 10))


def letters(rng: Generator) -> str:
    """Any letters: every letter as often as every other."""
    return "".join(ALPHABET[int(k)] for k in rng.integers(0, 26, int(rng.integers(1, 6))))


def shape_scene(width: int, height: int, rng: Generator, style: Style, most: int = 6) -> Picture:
    """One to six shapes; a few colours and kinds repeat, so that counting by colour or kind has something to count."""
    on = canvas(width, height, rng, style)
    # One alone more often than many: it is where naming and pointing begin.
    share = np.array([5, 3, 2, 2, 2, 2][:most])
    count = 1 + int(rng.choice(most, p=share / share.sum()))
    shapes = fill(on, count, 24 if count < 3 else 16, rng, style)
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
