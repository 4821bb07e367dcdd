"""The search for scales: never worse than rounding to nearest, and better where it counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_serve.quantize.packing import dequantize
from kimi_serve.quantize.scales import quantize, round_to_nearest_scale
from kimi_serve.quantize.scheme import INT8, Format, int4

FORMATS = [int4(32), int4(128), INT8]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
STORED = [(form, dtype) for form in FORMATS for dtype in DTYPES if form.bits == 4 or dtype == torch.float32]


def rounded_to_nearest(weight: torch.Tensor, form: Format, dtype: torch.dtype) -> torch.Tensor:
    grouped = weight.view(len(weight), form.groups(weight.shape[1]), -1)
    scale = round_to_nearest_scale(grouped, form, dtype)
    lowest = -(2 ** (form.bits - 1))
    return ((grouped / scale).round().clamp(lowest, -lowest - 1) * scale).view_as(weight)


def squared_error(weight: torch.Tensor, made: torch.Tensor, form: Format, importance: torch.Tensor) -> torch.Tensor:
    off = (weight - made).square() * importance
    return off.view(len(weight), form.groups(weight.shape[1]), -1).sum(-1)


def ours(weight: torch.Tensor, form: Format, dtype: torch.dtype, importance: torch.Tensor | None) -> torch.Tensor:
    integers, scale = quantize(weight, form, dtype, importance)
    return integers.float().view(*scale.shape, -1).mul(scale.float()[..., None]).view_as(weight)


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.sampled_from(STORED),
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.booleans(),
)
def test_no_group_is_worse_than_rounded_to_nearest(
    seed: int, stored: tuple[Format, torch.dtype], size: float, tail: float, weighed: bool
) -> None:
    form, dtype = stored
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 256, generator=generator) * size
    weight = weight * (tail * torch.randn(5, 256, generator=generator)).exp().clamp(max=100)  # heavier tails
    importance = torch.rand(256, generator=generator) if weighed else None
    weighs = torch.ones(256) if importance is None else importance
    mine = squared_error(weight, ours(weight, form, dtype, importance), form, weighs)
    nearest = squared_error(weight, rounded_to_nearest(weight, form, dtype), form, weighs)
    # The integers of both are exact; sums in float32 of 256 terms differ by 256 half units in the last place at most.
    assert bool((mine <= nearest * (1 + 256 * 2**-23)).all())


@pytest.mark.parametrize(("form", "share"), [(int4(128), 0.80), (int4(32), 0.80), (INT8, 0.995)])
def test_normal_weights_have_clearly_less_error_than_rounded_to_nearest(form: Format, share: float) -> None:
    weight = torch.randn(64, 2048, generator=torch.Generator().manual_seed(0)) * 0.02
    weighs = torch.ones(2048)
    mine = squared_error(weight, ours(weight, form, torch.bfloat16, None), form, weighs).sum()
    nearest = squared_error(weight, rounded_to_nearest(weight, form, torch.bfloat16), form, weighs).sum()
    assert mine < share * nearest


def test_importance_lowers_the_error_that_it_weighs() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, importance = torch.randn(64, 2048, generator=generator), torch.randn(2048, generator=generator).exp()
    form = int4(128)
    plain = squared_error(weight, ours(weight, form, torch.bfloat16, None), form, importance).sum()
    weighed = squared_error(weight, ours(weight, form, torch.bfloat16, importance), form, importance).sum()
    assert weighed < 0.97 * plain


def test_a_groups_largest_value_may_take_the_eighth_level_whatever_its_sign() -> None:
    weight = torch.zeros(2, 32)
    weight[0, 3], weight[1, 3] = 1.0, -1.0
    integers, scale = quantize(weight, int4(32), torch.bfloat16, None)
    assert dequantize(integers, scale).float().equal(weight)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_group_of_zeros_stays_zero_with_a_scale_that_can_be_divided_by(form: Format, dtype: torch.dtype) -> None:
    integers, scale = quantize(torch.zeros(2, 256), form, dtype, None)
    assert not integers.any()
    assert bool((scale != 0).all())
    assert bool(scale.isfinite().all())


@pytest.mark.parametrize("form", FORMATS)
def test_the_smallest_and_largest_floats_give_finite_weights(form: Format) -> None:
    weight = torch.full((1, 256), 1e-40)
    weight[0, 128:] = 3e38
    assert bool(ours(weight, form, torch.bfloat16, None).isfinite().all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    weight = torch.ones(1, 256)
    weight[0, 7] = bad
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, INT8, torch.float32, None)


def test_int8_never_uses_the_level_that_cannot_be_negated() -> None:
    integers, _ = quantize(torch.randn(64, 512), INT8, torch.float32, None)
    assert int(integers.min()) >= -127
