"""NaN, infinities, zeros and the smallest numbers: each token answers for itself, as in the reference."""

import numpy as np
import pytest
import torch

from kimi_serve.kernels import library, ops
from tests.kernels import reference
from tests.kernels.draws import Weights, as_float32, draw, draw_tokens

HIDDEN, BETWEEN, EXPERTS, GROUP = 128, 64, 4, 32
COUNTS = [12, 44, 76]  # tokens: 3, 11 and 19 an expert, which take a narrow panel and wide ones of two widths
EVERY = [("int4", False), ("int4", True), ("int8", False), ("int8", True), ("bf16", True)]
QUANTIZED = [("int4", False), ("int8", False)]
STRANGE = [float("nan"), float("inf"), float("-inf")]


def layer(form: str) -> tuple[Weights, Weights]:
    rng = np.random.default_rng(7)
    gate_up = draw(rng, form, EXPERTS, 2 * BETWEEN, HIDDEN, GROUP, torch.float32)
    return gate_up, draw(rng, form, EXPERTS, HIDDEN, BETWEEN, GROUP, torch.float32)


def run(form: str, exact: bool, x: torch.Tensor, routing: torch.Tensor | None = None) -> torch.Tensor:
    gate_up, down = layer(form)
    ids = torch.arange(len(x))[:, None] % EXPERTS
    weights = torch.ones(len(x), 1) if routing is None else routing
    return ops.experts(x, ids, weights, gate_up.packed, gate_up.scales, down.packed, down.scales, GROUP, exact)


def tokens(count: int = COUNTS[0]) -> torch.Tensor:
    return draw_tokens(np.random.default_rng(3), count, HIDDEN, torch.float32)


@pytest.mark.parametrize(("form", "exact"), EVERY)
@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("count", COUNTS)
def test_other_tokens_are_untouched(path: str, form: str, exact: bool, value: float, count: int) -> None:
    """Token 5 shares its panel with others of the same expert."""
    x = tokens(count)
    expected = run(form, exact, x)
    x[5, 17] = value
    found = run(form, exact, x)
    others = [token for token in range(count) if token != 5]
    assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize(("form", "exact"), QUANTIZED)
@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("count", COUNTS)
def test_a_token_that_cannot_be_quantized_is_nan(path: str, form: str, exact: bool, value: float, count: int) -> None:
    """The scale of such a group is not a number: infinity over infinity."""
    x = tokens(count)
    x[5, 17] = value
    assert run(form, exact, x)[5].isnan().all()


@pytest.mark.parametrize(("form", "exact"), [case for case in EVERY if case[1]])
@pytest.mark.parametrize("value", STRANGE)
def test_a_float_linear_answers_as_float64_does(path: str, form: str, exact: bool, value: float) -> None:
    gate_up, _ = layer(form)
    x = tokens()
    x[5, 17] = value
    found = ops.linear(x, gate_up.packed[0], gate_up.scales[0] if form != "bf16" else gate_up.scales, GROUP, exact)
    with np.errstate(invalid="ignore"):
        expected = as_float32(x).astype(np.float64) @ gate_up.matrices[0].real().T
    strange = ~np.isfinite(expected)
    assert strange[5].any()
    np.testing.assert_array_equal(as_float32(found)[strange], expected[strange])
    assert found.isfinite().numpy()[~strange].all()


@pytest.mark.parametrize(("form", "exact"), EVERY)
@pytest.mark.parametrize("count", COUNTS)
def test_zeros_give_zeros(path: str, form: str, exact: bool, count: int) -> None:
    assert (run(form, exact, torch.zeros(count, HIDDEN)) == 0).all()


@pytest.mark.parametrize(("form", "exact"), EVERY)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-31, 1e-29])
def test_the_smallest_numbers_stay_within_the_bound(path: str, form: str, exact: bool, size: float) -> None:
    x = torch.full((COUNTS[0], HIDDEN), size)
    gate_up, _ = layer(form)
    found = ops.linear(x, gate_up.packed[0], gate_up.scales[0] if form != "bf16" else gate_up.scales, GROUP, exact)
    expected = as_float32(x).astype(np.float64) @ gate_up.matrices[0].real().T
    # Below TINY activations count as zero; above it an eighth bit is lost, as everywhere.
    weights = np.abs(gate_up.matrices[0].real()).sum(-1)
    assert (np.abs(as_float32(found) - expected) <= weights * max(reference.TINY, size / 100)).all()


def test_large_values_overflow_to_infinity_in_bfloat16(path: str) -> None:
    weights = torch.ones(1, 32, dtype=torch.bfloat16)
    x = torch.full((1, 32), 3e38, dtype=torch.bfloat16)
    assert ops.linear(x, weights, torch.empty(0), 0, True).isposinf().all()


def test_the_gate_answers_as_torch_does(path: str) -> None:
    gate = torch.tensor([0.0, -0.0, 1e-40, 88.0, 89.0, 1e30, -88.0, -89.0, -1e30, *STRANGE])
    up = torch.full_like(gate, 2.0)
    expected = torch.nn.functional.silu(gate.double()).float() * up
    expected[-1] = float("nan")  # float32: -inf / (1 + inf)
    library.load().gate(gate.data_ptr(), up.data_ptr(), len(gate))
    assert torch.allclose(gate, expected, rtol=1e-6, atol=1e-36, equal_nan=True)
