"""Which images the tower sees together: every one once, never too many, alike ones side by side."""

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.inputs.geometry import Grid
from kimi_serve.inputs.passes import passes

GRIDS = st.lists(st.builds(Grid, st.integers(1, 40), st.integers(1, 40)), max_size=60)


@given(GRIDS, st.integers(1, 2000))
def test_every_image_is_in_one_pass(grids: list[Grid], most: int) -> None:
    assert sorted(number for chosen in passes(grids, most) for number in chosen) == list(range(len(grids)))


@given(GRIDS, st.integers(1, 2000))
def test_a_pass_is_no_larger_than_allowed_or_is_one_image(grids: list[Grid], most: int) -> None:
    for chosen in passes(grids, most):
        assert chosen
        assert len(chosen) == 1 or sum(grids[number].num_patches for number in chosen) <= most


@given(GRIDS, st.integers(1, 2000))
def test_two_passes_in_a_row_do_not_fit_in_one(grids: list[Grid], most: int) -> None:
    sizes = [[grids[number].num_patches for number in chosen] for chosen in passes(grids, most)]
    for one, following in pairwise(sizes):
        assert sum(one) + following[0] > most


@given(GRIDS, st.integers(1, 2000))
def test_images_of_one_grid_are_side_by_side_in_their_order(grids: list[Grid], most: int) -> None:
    seen = [number for chosen in passes(grids, most) for number in chosen]
    together = [list(same) for _, same in groupby(seen, key=lambda number: grids[number])]
    assert len(together) == len(set(grids))
    assert all(numbers == sorted(numbers) for numbers in together)


@pytest.mark.parametrize(("images", "expected"), [(0, 0), (4, 1), (5, 2), (512, 128)])
def test_small_images_share_passes(images: int, expected: int) -> None:
    assert len(passes([Grid(32, 32)] * images, 4096)) == expected
