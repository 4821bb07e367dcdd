"""The published image processor's steps, one image after the other, in float32. Knows PIL and torch; measures nothing.

What torchvision does for it, written out: padding always makes a new picture, converting to RGB copies one that is RGB
already, a tensor is made in rows of channels, made planar, made float, divided, copied and normalised, then cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MEAN = STD = (0.5, 0.5, 0.5)
PATCH, TOKEN = 14, 28  # pixels across


def pixel_values(images: Sequence[Image.Image], limit: int) -> Tensor:
    """(sum of patches, 3, 14, 14) float32; `limit`: patches of one image, in_token_limit of a checkpoint."""
    return torch.cat([_patches(_normalised(_sized(image, limit))) for image in images])


def _sized(image: Image.Image, limit: int) -> Image.Image:
    width, height = image.size
    patches = (width // PATCH) * (height // PATCH)
    if patches > limit:
        scale = math.sqrt(limit / patches)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    right, below = (-side % TOKEN for side in image.size)
    return ImageOps.expand(image, border=(0, 0, right, below), fill=0)


def _normalised(image: Image.Image) -> Tensor:
    rows = torch.from_numpy(np.array(image.convert("RGB"), np.uint8, copy=True))  # (height, width, 3)
    pixels = rows.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return pixels.clone().sub_(mean).div_(std)


def _patches(pixels: Tensor) -> Tensor:
    channels, height, width = pixels.shape
    cut = pixels.reshape(channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(1, 3, 0, 2, 4)
    return cut.contiguous().view(-1, channels, PATCH, PATCH)
