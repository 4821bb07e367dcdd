"""The size formula: published sizes, limits, and the bound that budgets rely on."""

import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_serve.errors import ConfigError, ImageError
from kimi_serve.inputs.geometry import SIDE_LIMIT, Geometry, Grid

INSTRUCT = Geometry(patch_size=14, merge_height=2, merge_width=2, in_token_limit=4096)
THINKING_2506 = Geometry(patch_size=14, merge_height=2, merge_width=2, in_token_limit=16384)

SIZES = st.integers(1, 20_000)
MERGES = st.sampled_from([(2, 2), (1, 1), (2, 1), (1, 3), (4, 4)])


@pytest.mark.parametrize(
    ("width", "height", "instruct", "thinking"),
    [
        (1, 1, 1, 1),
        (224, 224, 64, 64),
        (448, 448, 256, 256),
        (640, 480, 414, 414),
        (896, 896, 1024, 1024),
        (897, 897, 1089, 1089),
        (1024, 1024, 1089, 1369),
        (1792, 1792, 1024, 4096),
        (1920, 1080, 1032, 2691),
        (2560, 1440, 1075, 4214),
        (3840, 2160, 1032, 4214),
    ],
)
def test_published_sizes_cost_what_the_published_processor_makes_of_them(width, height, instruct, thinking):
    assert (INSTRUCT.num_tokens(width, height), THINKING_2506.num_tokens(width, height)) == (instruct, thinking)


def test_small_image_is_padded_and_never_scaled_up():
    assert INSTRUCT.resized(29, 5) == (29, 5)
    assert INSTRUCT.padded(29, 5) == (56, 28)
    assert INSTRUCT.grid(29, 5) == Grid(height=2, width=4)


def test_image_at_the_limit_is_not_scaled():
    assert INSTRUCT.resized(64 * 14 + 13, 64 * 14 + 13) == (909, 909)


def test_scaled_sides_are_truncated():
    assert INSTRUCT.resized(1024, 1000) == (
        int(1024 * (4096 / (73 * 71)) ** 0.5),
        int(1000 * (4096 / (73 * 71)) ** 0.5),
    )


def test_side_under_one_patch_counts_as_no_patches_and_is_not_scaled():
    assert INSTRUCT.resized(7140, 13) == (7140, 13)
    assert INSTRUCT.num_tokens(7140, 13) == 255


def test_longest_side_is_accepted_and_one_pixel_more_is_refused():
    assert INSTRUCT.grid(7140, 14).width == SIDE_LIMIT - 2
    with pytest.raises(ImageError, match=r"7141x14: too long; it is 512x2 patches .* under 512"):
        INSTRUCT.padded(7141, 14)


def test_tall_image_is_refused_like_a_long_one():
    with pytest.raises(ImageError, match=r"14x7141: too long; it is 2x512 patches"):
        INSTRUCT.num_tokens(14, 7141)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_empty_image_is_refused(size):
    with pytest.raises(ImageError, match="at least 1 pixel"):
        INSTRUCT.num_tokens(*size)


def test_image_that_scales_to_nothing_is_refused():
    with pytest.raises(ImageError, match="too thin"):
        Geometry(14, 2, 2, in_token_limit=1).num_tokens(14 * 400, 14)


def test_merge_kernel_need_not_be_square():
    geometry = Geometry(patch_size=10, merge_height=1, merge_width=3, in_token_limit=100)
    assert geometry.padded(31, 11) == (60, 20)
    assert geometry.num_tokens(31, 11) == 4


def test_absent_keys_have_the_defaults_of_the_published_class():
    assert Geometry.from_preprocessor_config({"pad_input": True}) == INSTRUCT


@pytest.mark.parametrize("raw", [{}, {"pad_input": False}])
def test_cropping_is_refused_by_name(raw):
    with pytest.raises(ConfigError, match=r"pad_input: False is not supported; supported: True"):
        Geometry.from_preprocessor_config(raw)


@pytest.mark.parametrize("settings", [(0, 2, 2, 4096), (14, 512, 2, 4096), (14, 2, 0, 4096), (14, 2, 2, 0)])
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ConfigError, match="is not supported; expected at least 1"):
        Geometry(*settings)


@given(SIZES, SIZES, st.integers(1, 20_000))
def test_grid_is_whole_tokens_within_the_side_limit(width, height, limit):
    geometry = Geometry(14, 2, 2, limit)
    try:
        grid = geometry.grid(width, height)
    except ImageError:
        return
    assert grid.height % 2 == grid.width % 2 == 0
    assert 0 < max(grid.height, grid.width) < SIDE_LIMIT
    assert geometry.num_tokens(width, height) == grid.num_patches // 4


@settings(max_examples=1000)
@given(st.integers(0, 600), st.integers(0, 600), st.integers(0, 20), st.integers(1, 40_000), MERGES, st.integers(2, 20))
def test_no_accepted_image_costs_more_than_max_tokens(across, down, spare, limit, merge, patch):
    geometry = Geometry(patch, *merge, limit)
    # Nearly a whole patch to spare on both sides, as in the images that cost most.
    size = (patch * (across + 1) - 1 - min(spare, patch - 2), patch * (down + 1) - 1)
    assert _tokens_or_zero(geometry, size) <= _bound(geometry)


@pytest.mark.parametrize(("limit", "most"), [(60, 25), (20, 12), (6, 6)])
def test_max_tokens_is_the_most_of_all_sizes_of_a_tiny_model(limit, most, monkeypatch):
    monkeypatch.setattr("kimi_serve.inputs.geometry.SIDE_LIMIT", 14)
    geometry = Geometry(patch_size=3, merge_height=2, merge_width=2, in_token_limit=limit)
    sizes = ((width, height) for width in range(1, 260) for height in range(1, 260))
    assert max(_tokens_or_zero(geometry, size) for size in sizes) == geometry.max_tokens() == most


def test_max_tokens_is_attained_at_the_published_limits():
    assert INSTRUCT.max_tokens() == INSTRUCT.num_tokens(6733, 153) == 1338
    assert THINKING_2506.max_tokens() == THINKING_2506.num_tokens(7083, 489) == 4464


def test_geometry_needs_no_array_library():
    code = "import sys, kimi_serve.inputs.geometry; print({'numpy', 'PIL', 'torch', 'tiktoken'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


@cache
def _bound(geometry: Geometry) -> int:
    return geometry.max_tokens()


def _tokens_or_zero(geometry: Geometry, size: tuple[int, int]) -> int:
    try:
        return geometry.num_tokens(*size)
    except ImageError:
        return 0
