"""torch operators that are whole parts of a layer: kimi_serve::norm, ::add_norm, ::latent, ::mlp and ::sparse.

Each is one call where torch's own and those of ops.py would be many: a decoded token's time goes to calls as much as to
weights. Knows tensors; never a model. Weights are packed as in ops.py, all of one call in one form.
"""

import torch
from torch import Tensor

from kimi_serve.errors import KernelError
from kimi_serve.kernels.checks import check_bias, check_like, check_width, columns_of, dtype_of
from kimi_serve.kernels.library import load
from kimi_serve.kernels.ops import expert_fields, matrix_fields

_definitions = torch.library.Library("kimi_serve", "FRAGMENT")
_definitions.define("norm(Tensor x, Tensor weight, float eps) -> Tensor")
_definitions.define("add_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)")
_definitions.define(
    "latent(Tensor x, Tensor positions, Tensor turns, Tensor norm, float eps, int heads, Tensor q, Tensor q_scales, "
    "Tensor kv_a, Tensor kv_a_scales, Tensor kv_b, Tensor kv_b_scales, int group, bool exact) "
    "-> (Tensor, Tensor, Tensor)"
)
_definitions.define(
    "mlp(Tensor x, Tensor gate_up, Tensor gate_up_scales, Tensor down, Tensor down_scales, int group, bool exact) "
    "-> Tensor"
)
_definitions.define(
    "sparse(Tensor x, Tensor router, Tensor? bias, int top_k, bool renormalize, float scale, Tensor gate_up, "
    "Tensor gate_up_scales, Tensor down, Tensor down_scales, Tensor shared_gate_up, Tensor shared_gate_up_scales, "
    "Tensor shared_down, Tensor shared_down_scales, int group, bool exact) -> Tensor"
)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32, rounded once to x's type."""
    x = x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    load().norm(*_norm_fields(x, weight, eps), x.data_ptr(), 0, weight.data_ptr(), y.data_ptr(), 0)
    return y


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual in float32, and the sum; both rounded once to x's type."""
    check_like("residual", residual, tuple(x.shape), x.dtype)
    x, residual = x.contiguous(), residual.contiguous()
    y, total = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
    pointers = (x.data_ptr(), residual.data_ptr(), weight.data_ptr(), y.data_ptr(), total.data_ptr())
    load().norm(*_norm_fields(x, weight, eps), *pointers)
    return y, total


def latent(
    x: Tensor,
    positions: Tensor,
    turns: Tensor,
    norm: Tensor,
    eps: float,
    heads: int,
    q: Tensor,
    q_scales: Tensor,
    kv_a: Tensor,
    kv_a_scales: Tensor,
    kv_b: Tensor,
    kv_b_scales: Tensor,
    group: int,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (tokens, heads * width) of one layer, turned and of one width: kimi_kernels.h.

    x (tokens, hidden), positions (tokens,) int64, turns (positions, rope) with cosines first, norm (latent,), q
    (heads * width, hidden), kv_a (latent + rope, hidden), kv_b (heads * (width - rope + value), latent).
    """
    tokens, rope, size = x.shape[0], turns.shape[1], norm.shape[0]
    width = q.shape[0] // heads
    value = kv_b.shape[0] // heads - (width - rope)
    check_width(x, columns_of(q))
    check_like("positions", positions, (tokens,), torch.int64)
    check_like("turns", turns, (turns.shape[0], rope), x.dtype)
    check_like("norm", norm, (size,), x.dtype)
    x, positions, turns = x.contiguous(), positions.contiguous(), turns.contiguous()
    pairs = [
        (weight.contiguous(), scales.contiguous())
        for weight, scales in ((q, q_scales), (kv_a, kv_a_scales), (kv_b, kv_b_scales))
    ]
    outs = tuple(torch.empty(tokens, heads * width, dtype=x.dtype) for _ in range(3))
    load().latent(
        tokens,
        heads,
        width - rope,
        rope,
        value,
        size,
        dtype_of("x", x),
        turns.shape[0],
        eps,
        x.data_ptr(),
        positions.data_ptr(),
        turns.data_ptr(),
        norm.data_ptr(),
        *(field for weight, scales in pairs for field in matrix_fields(weight, scales, group, exact)),
        *(out.data_ptr() for out in outs),
    )
    return outs[0], outs[1], outs[2]


def mlp(
    x: Tensor, gate_up: Tensor, gate_up_scales: Tensor, down: Tensor, down_scales: Tensor, group: int, exact: bool
) -> Tensor:
    """down(silu(gate x) * up x), (tokens, hidden); gate_up (2 * intermediate, hidden) with the gate's rows first."""
    x = x.contiguous()
    matrices = _contiguous(gate_up, gate_up_scales, down, down_scales)
    out = torch.empty(x.shape, dtype=x.dtype)
    load().experts(*expert_fields(x, None, None, 1, matrices, group, exact, 1.0, out))
    return out


def sparse(
    x: Tensor,
    router: Tensor,
    bias: Tensor | None,
    top_k: int,
    renormalize: bool,
    scale: float,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    shared_gate_up: Tensor,
    shared_gate_up_scales: Tensor,
    shared_down: Tensor,
    shared_down_scales: Tensor,
    group: int,
    exact: bool,
) -> Tensor:
    """`mlp` of the shared experts plus `scale` times the routed experts that `route` chooses by router x in float32.

    router (experts, hidden) float32, bias (experts,) float32; experts as in ops.py.
    """
    if router.shape[0] != down.shape[0]:
        raise KernelError(f"kernels: the router has {router.shape[0]} rows for {down.shape[0]} experts")
    check_like("router", router, (down.shape[0], x.shape[1]), torch.float32)
    check_bias(bias, down.shape[0])
    x, router = x.contiguous(), router.contiguous()
    routed = _contiguous(gate_up, gate_up_scales, down, down_scales)
    shared = _contiguous(shared_gate_up, shared_gate_up_scales, shared_down, shared_down_scales)
    out = torch.empty(x.shape, dtype=x.dtype)
    load().sparse(
        renormalize,
        router.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        *expert_fields(x, None, None, 1, shared, group, exact, 1.0, out),
        *expert_fields(x, None, None, top_k, routed, group, exact, scale, out),
    )
    return out


def _norm_fields(x: Tensor, weight: Tensor, eps: float) -> tuple[float, ...]:
    columns = x.shape[-1]
    check_like("weight", weight, (columns,), x.dtype)
    if not columns:
        raise KernelError("kernels: x has no columns; a norm needs at least one")
    return x.numel() // columns, columns, dtype_of("x", x), eps


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)


def _fake_norm(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_add_norm(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _fake_norm(x), _fake_norm(x)


def _fake_latent(
    x: Tensor, positions: Tensor, turns: Tensor, norm: Tensor, eps: float, heads: int, q: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys, values = (x.new_empty(x.shape[0], q.shape[0]) for _ in range(3))
    return queries, keys, values


for _operator, _fake in (
    (norm, _fake_norm),
    (add_norm, _fake_add_norm),
    (latent, _fake_latent),
    (mlp, _fake_norm),
    (sparse, _fake_norm),
):
    _definitions.impl(_operator.__name__, _operator, "CPU")
    torch.library.register_fake(f"kimi_serve::{_operator.__name__}", _fake, lib=_definitions)
