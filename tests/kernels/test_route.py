"""Which experts are chosen and what they count, beside float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.errors import KernelError
from kimi_serve.kernels import ops

# exp is within one unit in the last place; then a sum and a division; renormalized, top_k sums and a division more.
ROUNDING = 2.0**-24
CLEAR = 1e-6  # scores closer than this may change places


@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(0, 80),
    experts=st.integers(1, 128),
    top_k=st.integers(1, 8),
    biased=st.booleans(),
    renormalize=st.booleans(),
)
def test_choices_are_the_largest_and_weights_their_sigmoids(
    seed: int, tokens: int, experts: int, top_k: int, biased: bool, renormalize: bool
) -> None:
    rng, top_k = np.random.default_rng(seed), min(top_k, experts)
    logits = rng.normal(scale=3, size=(tokens, experts)).astype(np.float32)
    bias = rng.normal(scale=0.2, size=experts).astype(np.float32) if biased else None
    weights, ids = ops.route(
        torch.from_numpy(logits), None if bias is None else torch.from_numpy(bias), top_k, renormalize
    )
    assert ids.dtype == torch.int32
    assert weights.shape == ids.shape == (tokens, top_k)
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    choice = scores if bias is None else scores + bias
    for token in range(tokens):
        chosen = ids[token].numpy()
        assert len(set(chosen)) == top_k
        left = np.delete(choice[token], chosen)
        assert not left.size or choice[token][chosen].min() >= left.max() - CLEAR
        expected = scores[token][chosen]
        if renormalize:
            expected = expected / expected.sum()
        np.testing.assert_allclose(weights[token].numpy(), expected, rtol=(8 + 2 * top_k) * ROUNDING)


def test_of_equal_scores_the_first_experts_are_chosen() -> None:
    _, ids = ops.route(torch.zeros(1, 8), None, 3, True)
    assert ids.tolist() == [[0, 1, 2]]


def test_a_logit_that_is_no_number_shows_in_its_token_and_in_no_other() -> None:
    logits = torch.randn(3, 8)
    logits[1, 5] = torch.nan
    weights, ids = ops.route(logits, torch.zeros(8), 2, True)
    assert 5 in ids[1].tolist()
    assert weights[1].isnan().all()
    assert weights[[0, 2]].isfinite().all()


def test_large_logits_saturate_without_a_nan() -> None:
    weights, ids = ops.route(torch.tensor([[-1e4, 1e4, -torch.inf, torch.inf]]), None, 2, False)
    assert ids.tolist() == [[1, 3]]
    assert weights.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(("experts", "top_k"), [(4, 5), (4, 0), (1025, 1)])
def test_an_impossible_choice_is_refused(experts: int, top_k: int) -> None:
    with pytest.raises(KernelError, match="at least one expert and at most all of them; there are at most 1024"):
        ops.route(torch.zeros(1, experts), None, top_k, True)


def test_logits_of_another_type_are_refused() -> None:
    with pytest.raises(KernelError, match=r"logits are .* of torch\.bfloat16; expected"):
        ops.route(torch.zeros(1, 4, dtype=torch.bfloat16), None, 1, True)
    with pytest.raises(KernelError, match=r"bias is \(3,\) of torch.float32; expected \(4,\) float32"):
        ops.route(torch.zeros(1, 4), torch.zeros(3), 1, True)


def test_torch_accepts_the_operator() -> None:
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for bias in (None, torch.zeros(8)):
        torch.library.opcheck(torch.ops.kimi_serve.route.default, (torch.randn(3, 8), bias, 2, True), test_utils=checks)
