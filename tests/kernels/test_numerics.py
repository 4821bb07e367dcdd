"""Every path stays within the derived bounds of the float64 reference, whatever the shape."""

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kimi_serve.kernels import ops
from tests.kernels import reference
from tests.kernels.draws import FORMATS, as_float32, as_float64, draw, draw_tokens

# The fixture only chooses the path, once for all examples.
EXAMPLES = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
MOST_WORK = 3e7  # multiplications an example: portable loops and the reference on two cores

tokens = st.one_of(st.integers(1, 20), st.integers(1, 20), st.integers(21, 5000))
dtypes = st.sampled_from([torch.float32, torch.bfloat16])
seeds = st.integers(0, 2**32 - 1)


@st.composite
def forms(draw_one: st.DrawFn) -> tuple[str, bool, int]:
    """(format, exact, group); bfloat16 weights have float activations only."""
    form = draw_one(st.sampled_from(FORMATS))
    return form, form == "bf16" or draw_one(st.booleans()), draw_one(st.sampled_from([32, 64, 128]))


def width(form: str, group: int, size: int) -> int:
    """`size` itself, or for int4 a multiple of the group near it."""
    return max(1, size // group) * group if form == "int4" else size


def assert_within(found: torch.Tensor, expected: reference.Value) -> None:
    if found.dtype == torch.bfloat16:
        expected = expected.rounded_to_bf16()
    off = np.abs(as_float64(found) - expected.value)
    assert np.isfinite(expected.error).all()
    worst = np.argmax(off - expected.error)
    assert (off <= expected.error).all(), (
        f"{off.flat[worst]} from {expected.value.flat[worst]}; the bound is {expected.error.flat[worst]}"
    )


@EXAMPLES
@given(count=tokens, rows=st.integers(1, 300), columns=st.integers(1, 600), form=forms(), dtype=dtypes, seed=seeds)
def test_linear_stays_within_its_bound(
    path: str, count: int, rows: int, columns: int, form: tuple[str, bool, int], dtype: torch.dtype, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kind, exact, group = form
    columns = width(kind, group, columns)
    rows = max(1, min(rows, int(MOST_WORK / count / columns)))
    weights = draw(rng, kind, 1, rows, columns, group, dtype)
    x = draw_tokens(rng, count, columns, dtype)
    found = ops.linear(x, weights.packed[0], weights.scales[0] if kind != "bf16" else weights.scales, group, exact)
    assert_within(found, reference.linear(as_float32(x), weights.matrices[0], exact=exact))


@EXAMPLES
@given(
    count=tokens,
    experts=st.integers(1, 64),
    top_k=st.integers(1, 8),
    hidden=st.integers(1, 400),
    intermediate=st.integers(1, 300),
    form=forms(),
    dtype=dtypes,
    seed=seeds,
)
def test_experts_stay_within_their_bound(
    path: str,
    count: int,
    experts: int,
    top_k: int,
    hidden: int,
    intermediate: int,
    form: tuple[str, bool, int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    kind, exact, group = form
    fitting = MOST_WORK / (count * top_k * 3)
    hidden = width(kind, group, hidden)
    intermediate = width(kind, group, max(1, min(intermediate, int(fitting / hidden))))
    gate_up = draw(rng, kind, experts, 2 * intermediate, hidden, group, dtype)
    down = draw(rng, kind, experts, hidden, intermediate, group, dtype)
    x = draw_tokens(rng, count, hidden, dtype)
    ids = rng.integers(-1, experts, size=(count, top_k))  # -1: an expert of another rank
    routing = rng.uniform(0, 1, size=(count, top_k)).astype(np.float32)
    found = ops.experts(
        x,
        torch.from_numpy(ids).to(torch.int32 if seed % 2 else torch.int64),
        torch.from_numpy(routing),
        gate_up.packed,
        gate_up.scales,
        down.packed,
        down.scales,
        group,
        exact,
    )
    expected = reference.experts(as_float32(x), ids, routing, gate_up.matrices, down.matrices, exact=exact)
    assert_within(found, expected)
