"""Norms, attention's inputs and whole feed-forwards stay within derived bounds of float64, whatever the shape."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.errors import KernelError
from kimi_serve.kernels import layers, ops
from tests.kernels import layer_reference, reference
from tests.kernels.draws import as_float32, as_float64, draw, draw_tokens
from tests.kernels.reference import Value
from tests.kernels.test_numerics import EXAMPLES, MOST_WORK, assert_within, dtypes, forms, seeds, width

EPS = 1e-5
counts = st.one_of(st.integers(1, 20), st.integers(21, 1200))


def draw_vector(rng: np.random.Generator, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(rng.normal(size=size)).to(dtype)


def certain(values: np.ndarray) -> Value:
    return Value(values.astype(np.float64), np.zeros(values.shape))


@EXAMPLES
@given(count=counts, columns=st.integers(1, 3000), dtype=dtypes, seed=seeds, adds=st.booleans())
def test_norm_stays_within_its_bound(count: int, columns: int, dtype: torch.dtype, seed: int, adds: bool) -> None:
    rng = np.random.default_rng(seed)
    x, residual = (draw_tokens(rng, count, columns, dtype) for _ in range(2))
    weight = draw_vector(rng, columns, dtype)
    summed = as_float32(x) + as_float32(residual) if adds else as_float32(x)  # one rounding, as the kernel's
    if adds:
        found, total = layers.add_norm(x, residual, weight, EPS)
        assert torch.equal(total, torch.from_numpy(summed).to(dtype))
    else:
        found = layers.norm(x, weight, EPS)
    assert_within(found, layer_reference.norm(certain(summed), as_float64(weight), EPS))


@EXAMPLES
@given(
    count=counts,
    heads=st.integers(1, 5),
    nope=st.integers(0, 40),
    pairs=st.integers(0, 16),
    share=st.floats(0.01, 1),
    hidden=st.integers(1, 300),
    size=st.integers(1, 200),
    form=forms(),
    dtype=dtypes,
    seed=seeds,
)
def test_inputs_of_attention_stay_within_their_bounds(
    path: str,
    count: int,
    heads: int,
    nope: int,
    pairs: int,
    share: float,
    hidden: int,
    size: int,
    form: tuple[str, bool, int],
    dtype: torch.dtype,
    seed: int,
) -> None:
    rng, (kind, exact, group) = np.random.default_rng(seed), form
    nope, rope = max(nope, 1), 2 * pairs
    value = max(1, int(share * (nope + rope)))
    hidden, size = width(kind, group, hidden), width(kind, group, size)
    count = max(1, min(count, int(MOST_WORK / (hidden * (heads * (nope + rope) + size)))))
    q = draw(rng, kind, 1, heads * (nope + rope), hidden, group, dtype)
    kv_a = draw(rng, kind, 1, size + rope, hidden, group, dtype)
    kv_b = draw(rng, kind, 1, heads * (nope + value), size, group, dtype)
    weights = [tensor for w in (q, kv_a, kv_b) for tensor in (w.packed[0], w.scales[0] if kind != "bf16" else w.scales)]
    x, positions = draw_tokens(rng, count, hidden, dtype), torch.from_numpy(rng.integers(0, 50, size=count))
    angles = rng.uniform(0, 7, size=(50, pairs))
    turns = torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)], -1)).to(dtype)
    scale = draw_vector(rng, size, dtype)
    found = layers.latent(x, positions, turns, scale, EPS, heads, *weights, group, exact)
    expected = layer_reference.latent(
        as_float32(x),
        as_float64(turns)[positions.numpy()],
        layer_reference.Projections(
            q.matrices[0], kv_a.matrices[0], kv_b.matrices[0], as_float64(scale), EPS, heads, nope, rope, value
        ),
        exact=exact,
        to_bf16=dtype == torch.bfloat16,
    )
    for one, bound in zip(found, expected, strict=True):
        off = np.abs(as_float64(one).reshape(bound.value.shape) - bound.value)
        assert np.isfinite(bound.error).all()
        assert (off <= bound.error).all()
    assert not found[2].view(count, heads, -1)[..., value:].any()


@EXAMPLES
@given(
    count=counts,
    experts=st.integers(1, 20),
    top_k=st.integers(1, 6),
    hidden=st.integers(1, 300),
    between=st.tuples(st.integers(1, 200), st.integers(1, 300)),
    form=forms(),
    dtype=dtypes,
    biased=st.booleans(),
    renormalize=st.booleans(),
    scale=st.floats(0.5, 3),
    seed=seeds,
)
def test_a_sparse_layer_stays_within_its_bound(
    path: str,
    count: int,
    experts: int,
    top_k: int,
    hidden: int,
    between: tuple[int, int],
    form: tuple[str, bool, int],
    dtype: torch.dtype,
    biased: bool,
    renormalize: bool,
    scale: float,
    seed: int,
) -> None:
    rng, (kind, exact, group) = np.random.default_rng(seed), form
    top_k, hidden = min(top_k, experts), width(kind, group, hidden)
    routed_size, shared_size = (width(kind, group, size) for size in between)
    work = 3 * hidden * (top_k * routed_size + shared_size)
    count = max(1, min(count, int(MOST_WORK / work)))
    gate_up = draw(rng, kind, experts, 2 * routed_size, hidden, group, dtype)
    down = draw(rng, kind, experts, hidden, routed_size, group, dtype)
    shared_gate_up = draw(rng, kind, 1, 2 * shared_size, hidden, group, dtype)
    shared_down = draw(rng, kind, 1, hidden, shared_size, group, dtype)
    router = torch.from_numpy(rng.normal(size=(experts, hidden)) / hidden**0.5).float()
    bias = torch.from_numpy(rng.normal(scale=0.2, size=experts)).float() if biased else None
    x = draw_tokens(rng, count, hidden, dtype)
    shared = [shared_gate_up.packed[0], shared_gate_up.scales, shared_down.packed[0], shared_down.scales]
    if kind != "bf16":
        shared[1], shared[3] = shared[1][0], shared[3][0]
    routed = (gate_up.packed, gate_up.scales, down.packed, down.scales)
    found = layers.sparse(x, router, bias, top_k, renormalize, scale, *routed, *shared, group, exact)
    values = as_float32(x)
    alone = reference.expert_output(values, shared_gate_up.matrices[0], shared_down.matrices[0], exact=exact)
    if dtype == torch.bfloat16:
        alone = alone.rounded_to_bf16()
    assert_within(layers.mlp(x, *shared, group, exact), alone)
    choices = layer_reference.choose(
        values, as_float64(router), None if bias is None else as_float64(bias), top_k, renormalize=renormalize
    )
    expected = layer_reference.sparse(values, choices, scale, gate_up.matrices, down.matrices, alone, exact=exact)
    clear = choices.clear
    assert_within(found[torch.from_numpy(clear)], Value(expected.value[clear], expected.error[clear]))


def test_few_choices_are_unclear() -> None:
    """Else the test above would compare nothing."""
    rng = np.random.default_rng(3)
    x = draw_tokens(rng, 500, 256, torch.float32).numpy()
    choices = layer_reference.choose(x, rng.normal(size=(20, 256)) / 16, rng.normal(size=20), 6, renormalize=True)
    assert choices.clear.mean() > 0.9


def test_a_linear_takes_the_first_columns_of_each_head() -> None:
    rng = np.random.default_rng(5)
    for kind, exact in (("int4", False), ("int4", True), ("int8", False), ("bf16", True)):
        weights = draw(rng, kind, 1, 70, 96, 32, torch.float32)
        matrix = (weights.packed[0], weights.scales[0] if kind != "bf16" else weights.scales, 32, exact)
        x = draw_tokens(rng, 9, 96, torch.bfloat16)
        padded = torch.nn.functional.pad(x.view(9, 3, 32), (0, 7), value=torch.nan).flatten(1)
        assert torch.equal(ops.linear(padded, *matrix, 3), ops.linear(x, *matrix))


def test_torch_accepts_the_operators() -> None:
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for name, arguments in calls().items():
        operator = getattr(torch.ops.kimi_serve, name).default
        torch.library.opcheck(operator, arguments, test_utils=checks)


def calls() -> dict[str, tuple[object, ...]]:
    """Arguments of every operator: 3 tokens, 64 columns, 2 heads of 8 + 4 values, 5 experts; int8."""
    rng = np.random.default_rng(4)

    def matrix(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        one = draw(rng, "int8", 1, rows, columns, 0, torch.float32)
        return one.packed[0], one.scales[0]

    gate_up, down = (draw(rng, "int8", 5, rows, columns, 0, torch.float32) for rows, columns in ((32, 64), (64, 16)))
    routed = (gate_up.packed, gate_up.scales, down.packed, down.scales)
    shared = (*matrix(48, 64), *matrix(64, 24))
    x, ones = torch.randn(3, 64), torch.ones(64)
    attention = (*matrix(24, 64), *matrix(24, 64), *matrix(2 * (8 + 6), 20))
    return {
        "norm": (x, ones, EPS),
        "add_norm": (x, x + 1, ones, EPS),
        "latent": (x, torch.arange(3), torch.ones(9, 4), torch.ones(20), EPS, 2, *attention, 0, False),
        "mlp": (x, *shared, 0, False),
        "sparse": (x, torch.randn(5, 64), None, 2, True, 2.5, *routed, *shared, 0, False),
    }


def replaced(name: str, index: int, value: object) -> tuple[object, ...]:
    arguments = list(calls()[name])
    arguments[index] = value
    return tuple(arguments)


@pytest.mark.parametrize("position", [-1, 9])
def test_a_position_without_a_turn_is_refused(position: int) -> None:
    with pytest.raises(KernelError, match="a position is negative or past the last one"):
        layers.latent(*replaced("latent", 1, torch.full((3,), position)))


def test_wrong_calls_are_refused_with_a_sentence() -> None:
    with pytest.raises(KernelError, match=r"weight is \(63,\) of torch.float32; expected \(64,\) of torch.float32"):
        layers.norm(*replaced("norm", 1, torch.ones(63)))
    with pytest.raises(KernelError, match="x has no columns"):
        layers.norm(torch.empty(3, 0), torch.empty(0), EPS)
    with pytest.raises(
        KernelError, match=r"residual is \(3, 64\) of torch.bfloat16; expected \(3, 64\) of torch.float32"
    ):
        layers.add_norm(*replaced("add_norm", 1, torch.ones(3, 64, dtype=torch.bfloat16)))
    with pytest.raises(KernelError, match=r"positions is \(3,\) of torch.int32; expected \(3,\) of torch.int64"):
        layers.latent(*replaced("latent", 1, torch.arange(3, dtype=torch.int32)))
    with pytest.raises(KernelError, match="a size is out of range"):
        layers.latent(*replaced("latent", 3, torch.ones(19)))
    with pytest.raises(KernelError, match="the router has 4 rows for 5 experts"):
        layers.sparse(*replaced("sparse", 1, torch.randn(4, 64)))
    with pytest.raises(KernelError, match="at least one expert and at most all of them"):
        layers.sparse(*replaced("sparse", 3, 6))
    with pytest.raises(KernelError, match=r"x has shape \(3, 63\); the weights take \(tokens, 64\)"):
        layers.mlp(*replaced("mlp", 0, torch.randn(3, 63)))
    x, *matrix = torch.randn(3, 90), *calls()["mlp"][1:3]
    with pytest.raises(KernelError, match=r"the weights take 64 columns of 3 heads"):
        ops.linear(x, *matrix, 0, False, 3)


@pytest.mark.parametrize("name", ["norm", "add_norm", "latent", "mlp", "sparse"])
def test_no_tokens_give_no_rows_and_a_strange_token_answers_for_itself(name: str) -> None:
    arguments = list(calls()[name])
    operator = getattr(layers, name)
    expected = as_tuple(operator(*arguments))
    strange = arguments[0].clone()
    strange[1, 5] = torch.nan
    for one, other in zip(as_tuple(operator(strange, *arguments[1:])), expected, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    by_token = {"add_norm": (0, 1), "latent": (0, 1)}.get(name, (0,))
    for index in by_token:
        arguments[index] = arguments[index][:0]
    assert all(len(one) == 0 for one in as_tuple(operator(*arguments)))


def as_tuple(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
