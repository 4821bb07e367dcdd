"""Pixels: bit for bit those of the published processor, in every mode that PIL opens."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kimi_serve.errors import ImageError
from kimi_serve.inputs.config import ImageConfig, load_checkpoint
from kimi_serve.inputs.geometry import Geometry
from kimi_serve.inputs.image_processor import ImageProcessor

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
MODE_CASES = {case["id"]: case for case in CASES["image_mode_cases"] if case.get("npz")}
LANGUAGE_CASES = {case["id"]: case for case in CASES["language_cases"] if case.get("images")}

SMALL = ImageConfig(Geometry(14, 2, 2, in_token_limit=16), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def processor() -> ImageProcessor:
    return ImageProcessor(load_checkpoint(GOLDEN / "checkpoint").image)


def _opened(name: str) -> Image.Image:
    with Image.open(GOLDEN / name) as image:
        image.load()
        return image


@pytest.mark.parametrize("name", MODE_CASES)
def test_image_of_any_mode_is_cut_bit_for_bit(name, processor):
    case = MODE_CASES[name]
    image = _opened(case["images"][0])
    if hashlib.sha256(image.tobytes()).hexdigest() != case["decoded_sha256"]:
        pytest.skip("this Pillow decodes the file differently")
    expected = np.load(GOLDEN / case["npz"])
    result = processor(image)
    assert [[result.grid.height, result.grid.width]] == expected["image_grid_hws"].tolist()
    np.testing.assert_array_equal(result.patches, expected["pixel_values_u8"])


@pytest.mark.parametrize("name", LANGUAGE_CASES)
def test_images_of_a_prompt_are_cut_bit_for_bit(name, processor):
    case = LANGUAGE_CASES[name]
    expected = np.load(GOLDEN / "cases" / f"{name}.npz")
    results = [processor(_opened(image)) for image in case["images"]]
    assert [[result.grid.height, result.grid.width] for result in results] == expected["image_grid_hws"].tolist()
    np.testing.assert_array_equal(np.concatenate([r.patches for r in results]), expected["pixel_values_u8"])


def test_too_long_image_is_refused_before_it_is_decoded(processor):
    with Image.open(GOLDEN / "images/mode_toolong_8000x10.png") as image:
        image.load = lambda: pytest.fail("decoded")
        with pytest.raises(ImageError, match="Exceed pos emb"):
            processor(image)


def test_truncated_file_is_an_image_error(tmp_path, processor):
    whole = (GOLDEN / "images/c2_exact.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ImageError, match=r"mode RGB, size \d+x\d+: .*trunc"):
        processor(image)


def test_mode_that_has_no_way_to_rgb_is_an_image_error(processor):
    with pytest.raises(ImageError, match="mode La"):
        processor(Image.new("La", (28, 28)))


def test_patches_are_contiguous_bytes_in_raster_order(processor):
    image = Image.new("RGB", (28, 28))
    image.paste((10, 20, 30), (14, 0, 28, 14))
    patches = processor(image).patches
    assert patches.dtype == np.uint8
    assert patches.flags.c_contiguous
    assert patches[:, :, 0, 0].tolist() == [[0, 0, 0], [10, 20, 30], [0, 0, 0], [0, 0, 0]]


def test_given_image_is_left_as_it_was(processor):
    image = Image.new("P", (30, 30), 3)
    before = image.tobytes()
    processor(image)
    assert (image.size, image.tobytes()) == ((30, 30), before)


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"]))
def test_processor_makes_the_patches_that_geometry_promises(width, height, mode):
    result = ImageProcessor(SMALL)(Image.new(mode, (width, height)))
    assert result.grid == SMALL.geometry.grid(width, height)
    assert result.patches.shape == (result.grid.num_patches, 3, 14, 14)
