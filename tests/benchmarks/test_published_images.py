"""What preparing pictures is measured against does the same work: its floats are our bytes, normalised."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import published_images
from kimi_serve.inputs.config import ImageConfig
from kimi_serve.inputs.geometry import Geometry
from kimi_serve.inputs.image_processor import ImageProcessor

LIMIT = 64  # patches: the larger pictures are resized


@pytest.mark.parametrize("sizes", [[(56, 28)], [(30, 61), (200, 90)], [(1, 1), (112, 112), (300, 13)]])
def test_the_published_steps_see_our_pixels(sizes: list[tuple[int, int]]) -> None:
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]
    config = ImageConfig(Geometry(14, 2, 2, LIMIT), published_images.MEAN, published_images.STD)
    ours = torch.from_numpy(ImageProcessor(config).all(pictures, threads=2).patches)
    theirs = published_images.pixel_values(pictures, LIMIT)
    assert theirs.dtype == torch.float32
    torch.testing.assert_close((ours.float() / 255 - 0.5) / 0.5, theirs, rtol=0, atol=0)
