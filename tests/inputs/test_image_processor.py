"""Pixels: bit for bit those of the published processor, in every mode that PIL opens."""

import hashlib
import json
import tracemalloc
from dataclasses import replace
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


MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"]
PICTURES = st.lists(st.tuples(st.integers(1, 120), st.integers(1, 120), st.sampled_from(MODES)), max_size=9)


def _noise(width: int, height: int, mode: str) -> Image.Image:
    """Bytes of no pattern, the same for the same size and mode."""
    nbytes = len(Image.new(mode, (width, height)).tobytes())
    return Image.frombytes(mode, (width, height), np.random.default_rng(width * height).bytes(nbytes))


@given(PICTURES, st.integers(1, 5))
def test_images_are_bit_for_bit_what_they_are_alone(pictures, threads):
    images = [_noise(*picture) for picture in pictures]
    packed = ImageProcessor(SMALL).all(images, threads)
    alone = [ImageProcessor(SMALL)(image) for image in images]
    assert list(packed.grids) == [one.grid for one in alone]
    np.testing.assert_array_equal(packed.patches, np.concatenate([_none(), *(one.patches for one in alone)]))


def _none():
    return np.empty((0, 3, 14, 14), np.uint8)


def test_published_steps_give_the_same_pixels(processor):
    """to_tensor, normalise and patchify, undone: the bytes are exact."""
    image = _noise(140, 84, "RGB")
    pixels = (np.asarray(image, np.float32) / 255 - 0.5) / 0.5  # (84, 140, 3)
    patches = pixels.transpose(2, 0, 1).reshape(3, 6, 14, 10, 14).transpose(1, 3, 0, 2, 4).reshape(-1, 3, 14, 14)
    np.testing.assert_array_equal(processor(image).patches, np.rint((patches * 0.5 + 0.5) * 255).astype(np.uint8))


def test_the_first_images_error_is_told_whatever_the_threads(processor):
    images = [_noise(50, 50, "RGB"), Image.new("La", (28, 28)), Image.new("La", (29, 28))]
    for threads in (1, 3):
        with pytest.raises(ImageError, match="mode La, size 28x28"):
            processor.all(images, threads)


def test_an_image_that_is_too_long_is_refused_before_any_is_decoded(processor):
    with Image.open(GOLDEN / "images/c2_exact.png") as first:
        first.load = lambda: pytest.fail("decoded")
        with pytest.raises(ImageError, match="Exceed pos emb"):
            processor.all([first, Image.new("1", (8000, 10))], 2)


def test_nothing_as_large_as_the_result_is_held_beside_it():
    """Neither floats nor a second copy of all: what is held beside the result is that of one image."""
    processor = ImageProcessor(replace(SMALL, geometry=Geometry(14, 2, 2, in_token_limit=4096)))
    images = [_noise(448, 448, "RGB") for _ in range(24)]
    tracemalloc.start()
    try:
        packed = processor.all(images, threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert packed.patches.nbytes == 24 * 448 * 448 * 3
    assert peak - packed.patches.nbytes < 2 * 448 * 448 * 3
