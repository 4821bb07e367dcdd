"""Synthetic pictures and the truth about them. Knows shapes, colours and fonts; knows no question and no token."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from nano.fonts import font

RGB = tuple[int, int, int]
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
HUES = {
    "red": (-9, 7),
    "orange": (24, 36),
    "yellow": (51, 60),
    "green": (95, 140),
    "blue": (208, 238),
    "purple": (270, 292),
}
HELD_OUT_SHADES = (3, 7)  # tenths of a colour's range
HELD_OUT_FONT_SIZES = (25, 29, 34)
HELD_OUT_RADII = (11, 16)
TRAINING_BACKGROUNDS = ("plain", "gradient", "noise", "blobs", "blocks", "rings")
HELD_OUT_BACKGROUNDS = ("stripes", "checks")


@dataclass(frozen=True, slots=True)
class Shape:
    kind: str
    colour: str
    x: float
    y: float
    radius: int


@dataclass(frozen=True, slots=True)
class Text:
    kind: str  # "word" or "number"
    content: str
    centres: tuple[tuple[float, float], ...]  # of every character


@dataclass(frozen=True, slots=True)
class Picture:
    pixels: np.ndarray  # (height, width, 3) uint8
    shapes: tuple[Shape, ...]
    texts: tuple[Text, ...]

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])


@dataclass(frozen=True, slots=True)
class Style:
    """What a split may draw with: training and held-out share nothing but the shapes' names."""

    fonts: tuple[str, ...]
    held_out: bool
    min_font: int = 22
    max_font: int = 36

    def shade(self, rng: Generator) -> float:
        """A point of a colour's range; whole tenths are kept back for the held-out split."""
        while True:
            t = float(rng.random())
            if (int(t * 10) in HELD_OUT_SHADES) == self.held_out:
                return t

    def font_size(self, rng: Generator, largest: int) -> int:
        sizes = [s for s in range(self.min_font, largest + 1) if (s in HELD_OUT_FONT_SIZES) == self.held_out]
        return int(rng.choice(sizes or [self.min_font]))

    def radius(self, rng: Generator, largest: int) -> int:
        sizes = [r for r in range(9, largest + 1) if (r in HELD_OUT_RADII) == self.held_out]
        return int(rng.choice(sizes or [9]))

    def may_stand(self, x: float, y: float) -> bool:
        """Every tenth cell of a 4-pixel lattice is a held-out position."""
        return ((int(x // 4) * 7 + int(y // 4) * 3) % 10 == 0) == self.held_out

    def background(self, rng: Generator) -> str:
        return str(rng.choice(HELD_OUT_BACKGROUNDS if self.held_out else TRAINING_BACKGROUNDS))


@dataclass(slots=True)
class Canvas:
    image: Image.Image
    background: RGB
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)

    def is_free(self, box: tuple[float, float, float, float]) -> bool:
        return all(box[2] < b[0] or box[0] > b[2] or box[3] < b[1] or box[1] > b[3] for b in self.taken)


def hsv(hue: float, saturation: float, value: float) -> RGB:
    r, g, b = colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)
    return int(r * 255), int(g * 255), int(b * 255)


def shade_of(colour: str, rng: Generator, style: Style) -> RGB:
    t, u = style.shade(rng), float(rng.random())
    if colour == "black":
        return hsv(360 * u, 0.3 * u, 0.18 * t)
    if colour == "white":
        return hsv(360 * u, 0.04 * u, 0.93 + 0.07 * t)
    low, high = HUES[colour]
    value = 0.6 + 0.35 * u if colour in ("green", "purple", "blue") else 0.85 + 0.15 * u
    return hsv(low + (high - low) * t, 0.82 + 0.18 * u, value)


def distance(a: RGB, b: RGB) -> float:
    return float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5)


def pale_or_dark(rng: Generator, style: Style) -> RGB:
    t = style.shade(rng)
    if rng.random() < 0.6:
        return hsv(360 * t, 0.02 + 0.28 * float(rng.random()), 0.72 + 0.28 * float(rng.random()))
    return hsv(360 * t, 0.1 + 0.4 * float(rng.random()), 0.12 + 0.3 * float(rng.random()))


def canvas(width: int, height: int, rng: Generator, style: Style) -> Canvas:
    base = pale_or_dark(rng, style)
    pixels = np.broadcast_to(np.array(base, np.float32), (height, width, 3)).copy()
    pixels += texture(style.background(rng), width, height, rng)[..., None]
    return Canvas(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), base)


def texture(kind: str, width: int, height: int, rng: Generator) -> np.ndarray:
    """A brightness change per pixel, (height, width), of at most about 24 of 255."""
    strength = 6 + 18 * float(rng.random())
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == "plain":
        return np.zeros((height, width), np.float32)
    if kind == "noise":
        return rng.normal(0, strength * 0.5, (height, width)).astype(np.float32)
    if kind == "gradient":
        angle = rng.random() * 6.283
        ramp = np.cos(angle) * xs / width + np.sin(angle) * ys / height
        return np.asarray(strength * 1.4 * ramp, np.float32)
    period = float(rng.integers(5, 14))
    if kind == "blocks":  # of random brightness: edges that mean nothing
        side = int(period)
        tiles = rng.normal(0, strength * 0.5, (height // side + 1, width // side + 1))
        return np.kron(tiles, np.ones((side, side)))[:height, :width].astype(np.float32)
    if kind == "rings":
        away = np.hypot(xs - width * rng.random(), ys - height * rng.random())
        return np.asarray(strength * 0.5 * np.sin(away * 6.283 / period), np.float32)
    if kind == "stripes":
        angle = rng.random() * 3.14159
        return np.asarray(
            strength * np.sign(np.sin((np.cos(angle) * xs + np.sin(angle) * ys) * 6.283 / period)) * 0.5, np.float32
        )
    if kind == "checks":
        return np.asarray(strength * (((xs // period) + (ys // period)) % 2 - 0.5), np.float32)
    coarse = rng.normal(0, strength, (4, 4)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def outline(kind: str, radius: float, turn: float) -> list[tuple[float, float]]:
    """Corner points around the origin."""
    if kind in ("square", "triangle", "diamond"):
        count = 3 if kind == "triangle" else 4
        start = {"square": np.pi / 4, "triangle": -np.pi / 2, "diamond": 0.0}[kind]
        radii, angles = [radius] * count, [start + 2 * np.pi * k / count for k in range(count)]
    elif kind == "star":
        radii = [radius if k % 2 == 0 else radius * 0.42 for k in range(10)]
        angles = [-np.pi / 2 + np.pi * k / 5 for k in range(10)]
    else:  # cross
        arm = radius * 0.34
        corners = [(arm, radius), (arm, arm), (radius, arm), (radius, -arm), (arm, -arm), (arm, -radius)]
        corners += [(-x, -y) for x, y in corners]
        radii = [float(np.hypot(x, y)) for x, y in corners]
        angles = [float(np.arctan2(y, x)) for x, y in corners]
    return [(r * float(np.cos(a + turn)), r * float(np.sin(a + turn))) for r, a in zip(radii, angles, strict=True)]


def paint(image: Image.Image, kind: str, fill: RGB, x: float, y: float, radius: int, turn: float) -> None:
    """Antialiased: draw the mask at four times the size and shrink it."""
    half, scale = radius + 2, 4
    left, top = int(x) - half, int(y) - half
    mask = Image.new("L", (2 * half * scale, 2 * half * scale))
    draw = ImageDraw.Draw(mask)
    cx, cy = (x - left) * scale, (y - top) * scale
    if kind == "circle":
        draw.ellipse((cx - radius * scale, cy - radius * scale, cx + radius * scale, cy + radius * scale), fill=255)
    else:
        draw.polygon([(cx + px * scale, cy + py * scale) for px, py in outline(kind, radius, turn)], fill=255)
    image.paste(fill, (left, top), mask.reduce(scale))


def add_shape(on: Canvas, kind: str, colour: str, largest: int, rng: Generator, style: Style) -> Shape | None:
    """Draw one shape where there is room, or give up."""
    width, height = on.image.size
    fill = shade_of(colour, rng, style)
    if distance(fill, on.background) < 90:
        return None
    for _ in range(12):
        radius = style.radius(rng, min(largest, width // 2 - 2, height // 2 - 2))
        x = float(rng.uniform(radius + 1, width - radius - 1))
        y = float(rng.uniform(radius + 1, height - radius - 1))
        box = (x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1)
        if style.may_stand(x, y) and on.is_free(box):
            paint(on.image, kind, fill, x, y, radius, float(rng.uniform(-0.12, 0.12)))
            on.taken.append(box)
            return Shape(kind, colour, x, y, radius)
    return None


def place_shape(on: Canvas, x: float, y: float, radius: int, rng: Generator, style: Style) -> Shape | None:
    """Draw any shape at a place, or none where it would stick out or not be seen."""
    width, height = on.image.size
    kind, colour = str(rng.choice(SHAPES)), str(rng.choice(COLOURS))
    fill = shade_of(colour, rng, style)
    inside = radius < x < width - radius and radius < y < height - radius
    if not inside or distance(fill, on.background) < 90:
        return None
    paint(on.image, kind, fill, x, y, radius, float(rng.uniform(-0.12, 0.12)))
    return Shape(kind, colour, x, y, radius)


def add_text(on: Canvas, kind: str, content: str, rng: Generator, style: Style) -> Text | None:
    """Print one line where there is room, or give up."""
    width, height = on.image.size
    path = str(rng.choice(style.fonts))
    for attempt in range(10):
        size = style.font_size(rng, max(style.min_font, style.max_font - 3 * attempt))
        face = font(path, size)
        left, top, right, bottom = face.getbbox(content)
        if right - left > width - 6 or bottom - top > height - 6:
            continue
        x = float(rng.integers(3, int(width - (right - left)) - 2))
        y = float(rng.integers(3, int(height - (bottom - top)) - 2))
        box = (x - 2, y - 2, x + right - left + 2, y + bottom - top + 2)
        if not style.may_stand(x, y) or not on.is_free(box):
            continue
        on.taken.append(box)
        return print_at(on, kind, content, face, x, y, ink(on.background, rng, style))
    return None


def print_at(on: Canvas, kind: str, content: str, face: ImageFont.FreeTypeFont, x: float, y: float, fill: RGB) -> Text:
    """Print a line whose ink begins at (x, y)."""
    left, top, _, bottom = face.getbbox(content)
    ImageDraw.Draw(on.image).text((x - left, y - top), content, font=face, fill=fill)
    ends = [face.getlength(content[: k + 1]) for k in range(len(content))]
    starts = [0.0, *ends[:-1]]
    middle = y + (bottom - top) / 2
    return Text(kind, content, tuple((x - left + (a + b) / 2, middle) for a, b in zip(starts, ends, strict=True)))


def ink(background: RGB, rng: Generator, style: Style) -> RGB:
    """A text colour that can be told from the background."""
    while True:
        fill = shade_of(str(rng.choice(COLOURS)), rng, style)
        brightness = abs(sum(w * (a - b) for w, a, b in zip((0.3, 0.59, 0.11), fill, background, strict=True)))
        if brightness > 70:
            return fill
