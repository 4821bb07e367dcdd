"""torch operators over the library: kimi_serve::linear, ::experts and ::route. Knows tensors; never a model.

layers.py has the operators that are made of these.

Weights are what a checkpoint holds: int32 (int4, eight a word), int8, or bfloat16. `exact` keeps activations in
float32; else they become int8, a scale a token for int8 weights and a scale a token and group for int4 weights.
The operators are defined on import, with shapes for torch.compile; only calling one needs the library.
"""

import torch
from torch import Tensor

from kimi_serve.errors import KernelError
from kimi_serve.kernels.checks import (
    check_choices,
    check_heads,
    check_scales,
    check_scores,
    check_width,
    columns_of,
    dtype_of,
    format_of,
)
from kimi_serve.kernels.library import load

_definitions = torch.library.Library("kimi_serve", "DEF")
_definitions.define("linear(Tensor x, Tensor weight, Tensor scales, int group, bool exact, int heads=1) -> Tensor")
_definitions.define(
    "experts(Tensor x, Tensor ids, Tensor routing, Tensor gate_up, Tensor gate_up_scales, Tensor down, "
    "Tensor down_scales, int group, bool exact) -> Tensor"
)
_definitions.define("route(Tensor logits, Tensor? bias, int top_k, bool renormalize) -> (Tensor, Tensor)")


def linear(x: Tensor, weight: Tensor, scales: Tensor, group: int, exact: bool, heads: int = 1) -> Tensor:
    """x (tokens, columns), weight (rows, columns or columns/8), scales (rows, groups) -> (tokens, rows) of x's type.

    x may be wider: of each of its `heads` parts, the first columns / heads count.
    """
    check_heads(x, columns_of(weight), heads)
    if heads == 1:
        check_width(x, columns_of(weight))
    x, weight, scales = x.contiguous(), weight.contiguous(), scales.contiguous()
    tokens, width = x.shape
    y = torch.empty(tokens, weight.shape[0], dtype=x.dtype)
    dtype = dtype_of("x", x)
    matrix = matrix_fields(weight, scales, group, exact)
    load().linear(tokens, heads, width // heads, dtype, dtype, *matrix, x.data_ptr(), y.data_ptr())
    return y


def matrix_fields(weight: Tensor, scales: Tensor, group: int, exact: bool) -> tuple[int, ...]:
    """kimi_matrix of contiguous tensors."""
    rows, columns = weight.shape[0], columns_of(weight)
    check_scales("scales", weight, scales, group, columns)
    form, scale_dtype = format_of(weight), dtype_of("scales", scales)
    return rows, columns, form, group, scale_dtype, exact, weight.data_ptr(), scales.data_ptr()


def experts(
    x: Tensor,
    ids: Tensor,
    routing: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    group: int,
    exact: bool,
) -> Tensor:
    """The weighted sum of the chosen experts' down(silu(gate x) * up x), (tokens, hidden) of x's type.

    x (tokens, hidden); ids, routing (tokens, top_k), an id below 0 counts for nothing; gate_up (experts,
    2 * intermediate, hidden) with the gate's rows first, down (experts, hidden, intermediate), packed as in `linear`.
    """
    check_choices(x, ids, routing)
    x, ids, routing = x.contiguous(), ids.contiguous(), routing.float().contiguous()
    matrices = tuple(tensor.contiguous() for tensor in (gate_up, gate_up_scales, down, down_scales))
    out = torch.empty(x.shape, dtype=x.dtype)
    load().experts(*expert_fields(x, ids, routing, ids.shape[1], matrices, group, exact, 1.0, out))
    return out


def expert_fields(
    x: Tensor,
    ids: Tensor | None,
    routing: Tensor | None,
    top_k: int,
    matrices: tuple[Tensor, ...],
    group: int,
    exact: bool,
    scale: float,
    out: Tensor,
) -> tuple[float, ...]:
    """kimi_experts_call of contiguous tensors; without ids all tokens go to the first expert, and count once."""
    gate_up, gate_up_scales, down, down_scales = matrices
    *count, hidden, words = down.shape  # one expert's matrices may come without a first axis
    intermediate = columns_of(down)
    expected = (*count, 2 * intermediate, hidden * words // intermediate)
    if gate_up.shape != expected or gate_up.dtype != down.dtype:
        raise KernelError(
            f"kernels: gate_up has shape {tuple(gate_up.shape)} of {gate_up.dtype}; "
            f"down implies {expected} of {down.dtype}"
        )
    check_width(x, hidden)
    check_scales("gate_up_scales", gate_up, gate_up_scales, group, hidden)
    check_scales("down_scales", down, down_scales, group, intermediate)
    if gate_up_scales.dtype != down_scales.dtype:
        raise KernelError(f"kernels: gate_up_scales are {gate_up_scales.dtype}; down_scales are {down_scales.dtype}")
    return (
        x.shape[0],
        top_k,
        count[0] if count else 1,
        hidden,
        intermediate,
        format_of(gate_up),
        group,
        dtype_of("scales", down_scales),
        dtype_of("x", x),
        exact,
        8 if ids is None else ids.element_size(),
        0,
        scale,
        x.data_ptr(),
        0 if ids is None else ids.data_ptr(),
        0 if routing is None else routing.data_ptr(),
        *(matrix.data_ptr() for matrix in matrices),
        out.data_ptr(),
    )


def route(logits: Tensor, bias: Tensor | None, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Weights (tokens, top_k) float32 and ids int32 of the largest sigmoid(logits) + bias; a weight is its sigmoid.

    logits (tokens, experts) and bias (experts,) are float32; `renormalize` makes a token's weights sum to one.
    """
    check_scores(logits, bias)
    logits = logits.contiguous()
    bias = None if bias is None else bias.contiguous()
    tokens, count = logits.shape
    weights, ids = (torch.empty(tokens, top_k, dtype=dtype) for dtype in (torch.float32, torch.int32))
    load().route(
        tokens,
        count,
        top_k,
        renormalize,
        logits.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        weights.data_ptr(),
        ids.data_ptr(),
    )
    return weights, ids


def _fake_linear(x: Tensor, weight: Tensor, scales: Tensor, group: int, exact: bool, heads: int = 1) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _fake_experts(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_route(logits: Tensor, bias: Tensor | None, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    tokens = logits.shape[0]
    return logits.new_empty(tokens, top_k), logits.new_empty(tokens, top_k, dtype=torch.int32)


_definitions.impl("linear", linear, "CPU")
_definitions.impl("experts", experts, "CPU")
_definitions.impl("route", route, "CPU")
torch.library.register_fake("kimi_serve::linear", _fake_linear, lib=_definitions)
torch.library.register_fake("kimi_serve::experts", _fake_experts, lib=_definitions)
torch.library.register_fake("kimi_serve::route", _fake_route, lib=_definitions)
