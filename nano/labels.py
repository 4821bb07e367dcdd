"""Dense truth for the vision tower: what stands in every patch. Knows pictures and patches; exists in training only."""

from __future__ import annotations

import string

import numpy as np

from nano.pictures import COLOURS, SHAPES, Picture

CHARACTERS = string.digits + string.ascii_uppercase
MOST_CHARACTERS = 8  # a word's or number's characters are numbered up to this
PATCH = 14


def label(picture: Picture, rows: int, columns: int) -> dict[str, np.ndarray]:
    """Per patch: the character in its halves and its place in the word, and the shape whose centre it holds."""
    out = {
        "character": np.zeros((rows, columns, 2), np.int64),
        "place": np.full((rows, columns, 2), -100, np.int64),
        "shape": np.zeros((rows, columns), np.int64),
        "colour": np.full((rows, columns), -100, np.int64),
        "offset": np.zeros((rows, columns, 2), np.float32),
    }
    for text in picture.texts:
        for place, (x, y) in enumerate(text.centres):
            cell = (int(y) // PATCH, int(x) // PATCH, int(x) % PATCH // (PATCH // 2))
            out["character"][cell] = 1 + CHARACTERS.index(text.content[place])
            out["place"][cell] = min(place, MOST_CHARACTERS - 1) + (MOST_CHARACTERS if text.kind == "number" else 0)
    for shape in picture.shapes:
        cell2 = (int(shape.y) // PATCH, int(shape.x) // PATCH)
        out["shape"][cell2] = 1 + SHAPES.index(shape.kind)
        out["colour"][cell2] = COLOURS.index(shape.colour)
        out["offset"][cell2] = (shape.x % PATCH / PATCH - 0.5, shape.y % PATCH / PATCH - 0.5)
    return {name: merged(value) for name, value in out.items()}


def merged(grid: np.ndarray) -> np.ndarray:
    """(rows, columns, ...) -> (tokens, 4, ...), in the merger's order."""
    rows, columns, *rest = grid.shape
    grid = grid.reshape(rows // 2, 2, columns // 2, 2, *rest)
    return np.moveaxis(grid, 1, 2).reshape(rows * columns // 4, 4, *rest)


def patchify(pixels: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 -> (patches, 3, 14, 14), zero padding right and bottom to multiples of 28."""
    height, width, _ = pixels.shape
    pixels = np.pad(pixels, ((0, -height % 28), (0, -width % 28), (0, 0)))
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    grid = pixels.reshape(rows, PATCH, columns, PATCH, 3)
    return np.ascontiguousarray(grid.transpose(0, 2, 4, 1, 3)).reshape(rows * columns, 3, PATCH, PATCH)
