"""From an opened image to uint8 patches. Knows PIL and numpy; never a model, a token or a float."""

from dataclasses import dataclass

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


class ImageProcessor:
    """Resize, pad, convert, cut: in the order of the published processor, which shows in the pixels.

    Resizing and padding happen in the image's own mode: palette images resize with nearest neighbour and pad with
    entry 0, CMYK pads with white, RGBA resizes premultiplied and then loses its alpha. EXIF orientation is ignored.
    """

    def __init__(self, config: ImageConfig) -> None:
        self.geometry = config.geometry

    def __call__(self, image: Image.Image) -> ImagePatches:
        width, height = image.size
        grid = self.geometry.grid(width, height)  # refuses before any pixel is decoded
        try:
            resized = _resize(image, self.geometry.resized(width, height))
            padded = _pad(resized, self.geometry.padded(width, height))
            rgb = padded if padded.mode == "RGB" else padded.convert("RGB")
            patches = _cut(rgb, grid, self.geometry.patch_size)
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for broken data and for unusual modes
            raise ImageError(f"image of mode {image.mode}, size {width}x{height}: {error}") from error
        return ImagePatches(patches, grid)


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


def _cut(rgb: Image.Image, grid: Grid, patch: int) -> NDArray[np.uint8]:
    pixels = np.asarray(rgb)  # (height, width, 3)
    tiles = pixels.reshape(grid.height, patch, grid.width, patch, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles).reshape(grid.num_patches, 3, patch, patch)
