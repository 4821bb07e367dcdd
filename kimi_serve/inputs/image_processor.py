"""From an opened image to uint8 patches. Knows PIL and numpy; never a model, a token or a float."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kimi_serve.errors import ImageError
from kimi_serve.inputs.config import ImageConfig
from kimi_serve.inputs.geometry import Grid


@dataclass(frozen=True, slots=True, eq=False)
class ImagePatches:
    """One image as the model reads it; normalisation is left to the patch embedding."""

    patches: NDArray[np.uint8]  # (grid.height * grid.width, 3, patch_size, patch_size), raster order
    grid: Grid


@dataclass(frozen=True, slots=True, eq=False)
class PackedPatches:
    """Images as the model reads them, one after the other."""

    patches: NDArray[np.uint8]  # (sum of height * width, 3, patch_size, patch_size)
    grids: Sequence[Grid]


class ImageProcessor:
    """Resize, pad, convert, cut: in the order of the published processor, which shows in the pixels.

    Resizing and padding happen in the image's own mode: palette images resize with nearest neighbour and pad with
    entry 0, CMYK pads with white, RGBA resizes premultiplied and then loses its alpha. EXIF orientation is ignored.
    """

    def __init__(self, config: ImageConfig) -> None:
        self.geometry = config.geometry

    def __call__(self, image: Image.Image) -> ImagePatches:
        grid = self.geometry.grid(*image.size)  # refuses before any pixel is decoded
        patches = self._room_for(grid.num_patches)
        self._fill(patches, image, grid)
        return ImagePatches(patches, grid)

    def all(self, images: Sequence[Image.Image], threads: int) -> PackedPatches:
        """Images side by side on at most so many threads: PIL and numpy release the interpreter's lock at pixels.

        Each is written where it stays, and is what it would be alone. The error is the first image's that has one.
        """
        grids = [self.geometry.grid(*image.size) for image in images]
        ends = list(accumulate(grid.num_patches for grid in grids))
        patches = self._room_for(ends[-1] if ends else 0)
        places = [patches[end - grid.num_patches : end] for end, grid in zip(ends, grids, strict=True)]
        if min(len(images), threads) <= 1:
            for place, image, grid in zip(places, images, grids, strict=True):
                self._fill(place, image, grid)
        else:
            with ThreadPoolExecutor(min(len(images), threads)) as pool:
                list(pool.map(self._fill, places, images, grids))
        return PackedPatches(patches, grids)

    def _room_for(self, num_patches: int) -> NDArray[np.uint8]:
        return np.empty((num_patches, 3, self.geometry.patch_size, self.geometry.patch_size), np.uint8)

    def _fill(self, patches: NDArray[np.uint8], image: Image.Image, grid: Grid) -> None:
        width, height = image.size
        try:
            resized = _resize(image, self.geometry.resized(width, height))
            padded = _pad(resized, self.geometry.padded(width, height))
            rgb = padded if padded.mode == "RGB" else padded.convert("RGB")
            _cut(rgb, grid, self.geometry.patch_size, patches)
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for broken data and for unusual modes
            raise ImageError(f"image of mode {image.mode}, size {width}x{height}: {error}") from error


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pad on the right and at the bottom with zeros of the image's own mode."""
    if image.size == size:
        return image
    bands = len(image.getbands())
    canvas = Image.new(image.mode, size, 0 if bands == 1 else (0,) * bands)
    palette = image.getpalette() if image.mode in ("P", "PA") else None
    if palette is not None:
        canvas.putpalette(palette)
    canvas.paste(image, (0, 0))
    return canvas


def _cut(rgb: Image.Image, grid: Grid, patch: int, patches: NDArray[np.uint8]) -> None:
    """Write an image's patches: a channel at a time, one strided copy each, whose items are a patch's rows."""
    row = np.dtype((np.void, patch))
    tiles = patches.reshape(grid.height, grid.width, 3, patch * patch).view(row)  # (down, across, 3, patch)
    for channel, band in enumerate(rgb.split()):
        rows = np.asarray(band).view(row).reshape(grid.height, patch, grid.width)
        tiles[:, :, channel] = rows.transpose(0, 2, 1)
