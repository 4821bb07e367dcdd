"""Dense truth for the vision tower: what stands in every token. Knows pictures and patches; exists in training only."""

from __future__ import annotations

import string

import numpy as np

from nano.pictures import COLOURS, SHAPES, Picture

CHARACTERS = string.digits + string.ascii_uppercase
MOST_CHARACTERS = 6  # a word's or number's characters are numbered up to this
PATCH, TOKEN = 14, 28
NOTHING = -100  # cross entropy's own mark


def label(picture: Picture, rows: int, columns: int) -> dict[str, np.ndarray]:
    """Per token (rows, columns count tokens): the character in its halves and its place in the word, the shape whose
    centre it holds, and where in the picture that centre is, 0..1."""
    out = {
        "character": np.zeros((rows, columns, 2), np.int64),
        "place": np.full((rows, columns, 2), NOTHING, np.int64),
        "shape": np.zeros((rows, columns), np.int64),
        "colour": np.full((rows, columns), NOTHING, np.int64),
        "spot": np.zeros((rows, columns, 2), np.float32),
    }
    for text in picture.texts:
        for place, (x, y) in enumerate(text.centres):
            cell = (int(y) // TOKEN, int(x) // TOKEN, int(x) % TOKEN // (TOKEN // 2))
            out["character"][cell] = 1 + CHARACTERS.index(text.content[place])
            out["place"][cell] = min(place, MOST_CHARACTERS - 1) + (MOST_CHARACTERS if text.kind == "number" else 0)
    for shape in picture.shapes:
        cell2 = (int(shape.y) // TOKEN, int(shape.x) // TOKEN)
        out["shape"][cell2] = 1 + SHAPES.index(shape.kind)
        out["colour"][cell2] = COLOURS.index(shape.colour)
        out["spot"][cell2] = (shape.x / picture.width, shape.y / picture.height)
    return {name: value.reshape(rows * columns, *value.shape[2:]) for name, value in out.items()}


def patchify(pixels: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 -> (patches, 3, 14, 14), zero padding right and bottom to multiples of 28."""
    height, width, _ = pixels.shape
    pixels = np.pad(pixels, ((0, -height % TOKEN), (0, -width % TOKEN), (0, 0)))
    rows, columns = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    grid = pixels.reshape(rows, PATCH, columns, PATCH, 3)
    return np.ascontiguousarray(grid.transpose(0, 2, 4, 1, 3)).reshape(rows * columns, 3, PATCH, PATCH)
