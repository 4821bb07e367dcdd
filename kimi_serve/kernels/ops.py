"""torch operators over the library: kimi_serve::linear, ::experts and ::route. Knows tensors; never a model.

Weights are what a checkpoint holds: int32 (int4, eight a word), int8, or bfloat16. `exact` keeps activations in
float32; else they become int8, a scale a token for int8 weights and a scale a token and group for int4 weights.
The operators are defined on import, with shapes for torch.compile; only calling one needs the library.
"""

import torch
from torch import Tensor

from kimi_serve.errors import KernelError
from kimi_serve.kernels.library import load

_FORMATS = {torch.int32: 0, torch.int8: 1, torch.bfloat16: 2}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_VALUES = {torch.int32: 8}

_definitions = torch.library.Library("kimi_serve", "DEF")
_definitions.define("linear(Tensor x, Tensor weight, Tensor scales, int group, bool exact) -> Tensor")
_definitions.define(
    "experts(Tensor x, Tensor ids, Tensor routing, Tensor gate_up, Tensor gate_up_scales, Tensor down, "
    "Tensor down_scales, int group, bool exact) -> Tensor"
)
_definitions.define("route(Tensor logits, Tensor? bias, int top_k, bool renormalize) -> (Tensor, Tensor)")


def linear(x: Tensor, weight: Tensor, scales: Tensor, group: int, exact: bool) -> Tensor:
    """x (tokens, columns), weight (rows, columns or columns/8), scales (rows, groups) -> (tokens, rows) of x's type."""
    rows, words = weight.shape
    columns = words * _VALUES.get(weight.dtype, 1)
    _check_width(x, columns)
    _check_scales("scales", weight, scales, group, columns)
    x, weight, scales = x.contiguous(), weight.contiguous(), scales.contiguous()
    tokens = x.shape[0]
    y = x.new_empty(tokens, rows)
    load().linear(
        tokens,
        columns,
        rows,
        _format(weight),
        group,
        _dtype("scales", scales),
        _dtype("x", x),
        exact,
        x.data_ptr(),
        weight.data_ptr(),
        scales.data_ptr(),
        y.data_ptr(),
    )
    return y


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
    values = _VALUES.get(gate_up.dtype, 1)
    count, hidden, words = down.shape
    intermediate = words * values
    expected = (count, 2 * intermediate, hidden // values)
    if gate_up.shape != expected or gate_up.dtype != down.dtype:
        raise KernelError(
            f"kernels: gate_up has shape {tuple(gate_up.shape)} of {gate_up.dtype}; "
            f"down implies {expected} of {down.dtype}"
        )
    _check_width(x, hidden)
    _check_choices(x, ids, routing)
    _check_scales("gate_up_scales", gate_up, gate_up_scales, group, hidden)
    _check_scales("down_scales", down, down_scales, group, intermediate)
    if gate_up_scales.dtype != down_scales.dtype:
        raise KernelError(f"kernels: gate_up_scales are {gate_up_scales.dtype}; down_scales are {down_scales.dtype}")
    x, ids, routing = x.contiguous(), ids.contiguous(), routing.float().contiguous()
    matrices = [tensor.contiguous() for tensor in (gate_up, gate_up_scales, down, down_scales)]
    out = torch.empty_like(x)
    tokens, top_k = ids.shape
    load().experts(
        tokens,
        top_k,
        count,
        hidden,
        intermediate,
        _format(gate_up),
        group,
        _dtype("scales", down_scales),
        _dtype("x", x),
        exact,
        ids.element_size(),
        x.data_ptr(),
        ids.data_ptr(),
        routing.data_ptr(),
        *(matrix.data_ptr() for matrix in matrices),
        out.data_ptr(),
    )
    return out


def route(logits: Tensor, bias: Tensor | None, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Weights (tokens, top_k) float32 and ids int32 of the largest sigmoid(logits) + bias; a weight is its sigmoid.

    logits (tokens, experts) and bias (experts,) are float32; `renormalize` makes a token's weights sum to one.
    """
    _check_scores(logits, bias)
    logits = logits.contiguous()
    bias = None if bias is None else bias.contiguous()
    tokens, count = logits.shape
    weights, ids = logits.new_empty(tokens, top_k), logits.new_empty(tokens, top_k, dtype=torch.int32)
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


def _fake_linear(x: Tensor, weight: Tensor, scales: Tensor, group: int, exact: bool) -> Tensor:
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


def _format(weight: Tensor) -> int:
    form = _FORMATS.get(weight.dtype)
    if form is None:
        raise KernelError(f"kernels: weights are {weight.dtype}; expected int32 (packed int4), int8 or bfloat16")
    return form


def _dtype(name: str, tensor: Tensor) -> int:
    number = _DTYPES.get(tensor.dtype)
    if number is None:
        raise KernelError(f"kernels: {name}: {tensor.dtype} is not supported; supported: float32, bfloat16")
    return number


# Sentences are made where a check fails: making them first would cost more than a small layer.
def _check_width(x: Tensor, columns: int) -> None:
    if x.ndim != 2 or x.shape[1] != columns:
        raise KernelError(f"kernels: x has shape {tuple(x.shape)}; the weights take (tokens, {columns})")


def _check_choices(x: Tensor, ids: Tensor, routing: Tensor) -> None:
    if ids.ndim != 2 or ids.shape != routing.shape or ids.shape[0] != x.shape[0]:
        raise KernelError(
            f"kernels: ids {tuple(ids.shape)} and routing {tuple(routing.shape)} must both be "
            f"({x.shape[0]} tokens, top_k)"
        )
    if ids.dtype not in (torch.int32, torch.int64):
        raise KernelError(f"kernels: ids are {ids.dtype}; expected int32 or int64")


def _check_scores(logits: Tensor, bias: Tensor | None) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise KernelError(
            f"kernels: logits are {tuple(logits.shape)} of {logits.dtype}; expected (tokens, experts) float32"
        )
    if bias is not None and (bias.shape != logits.shape[1:] or bias.dtype != torch.float32):
        raise KernelError(
            f"kernels: bias is {tuple(bias.shape)} of {bias.dtype}; expected {tuple(logits.shape[1:])} float32"
        )


def _check_scales(name: str, weight: Tensor, scales: Tensor, group: int, columns: int) -> None:
    """int4 has a scale a group, int8 a float32 scale a row, bfloat16 none."""
    if weight.dtype == torch.bfloat16:
        return
    groups = columns // group if weight.dtype == torch.int32 and group else 1
    expected = (*weight.shape[:-1], groups)
    if scales.shape != expected:
        raise KernelError(f"kernels: {name} has shape {tuple(scales.shape)}; the weights imply {expected}")
