"""Geometry.largest: the most pixels of a shape for so many tokens."""

from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.inputs.geometry import Geometry

sides = st.floats(min_value=0.01, max_value=20_000)


@given(sides, sides, st.integers(1, 5000), st.floats(min_value=0.01, max_value=10), st.sampled_from((256, 4096, 16384)))
def test_it_keeps_to_the_tokens_and_the_scale_and_is_never_scaled_down(
    width: float, height: float, tokens: int, scale: float, limit: int
) -> None:
    geometry = Geometry(14, 2, 2, limit)
    size = geometry.largest(width, height, tokens=tokens, scale=scale)
    assert geometry.resized(*size) == size
    assert geometry.num_tokens(*size) <= tokens
    assert size[0] <= max(1, width * scale)
    assert size[1] <= max(1, height * scale)


@given(st.integers(100, 5000), st.integers(100, 5000), st.integers(16, 4096))
def test_none_of_the_same_shape_that_is_larger_by_a_tokens_side_would_fit(width: int, height: int, tokens: int) -> None:
    geometry = Geometry(14, 2, 2, 16384)
    found = geometry.largest(width, height, tokens=tokens, scale=1e9)
    factor = max(28 / found[0], 28 / found[1]) + 1.05
    larger = int(found[0] * factor), int(found[1] * factor)
    across, down = (-(-side // 28) for side in larger)
    assert across * down > tokens or max(across, down) > 255
