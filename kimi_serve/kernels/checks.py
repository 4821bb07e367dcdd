"""What the operators require of their tensors, in sentences. Knows shapes and types; computes nothing.

Sentences are made where a check fails: making them first would cost more than a small layer.
"""

import torch
from torch import Tensor

from kimi_serve.errors import KernelError

VALUES_A_WORD = {torch.int32: 8}
_FORMATS = {torch.int32: 0, torch.int8: 1, torch.bfloat16: 2}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


def format_of(weight: Tensor) -> int:
    form = _FORMATS.get(weight.dtype)
    if form is None:
        raise KernelError(f"kernels: weights are {weight.dtype}; expected int32 (packed int4), int8 or bfloat16")
    return form


def dtype_of(name: str, tensor: Tensor) -> int:
    number = _DTYPES.get(tensor.dtype)
    if number is None:
        raise KernelError(f"kernels: {name}: {tensor.dtype} is not supported; supported: float32, bfloat16")
    return number


def columns_of(weight: Tensor) -> int:
    return int(weight.shape[-1] * VALUES_A_WORD.get(weight.dtype, 1))


def check_width(x: Tensor, columns: int) -> None:
    if x.ndim != 2 or x.shape[1] != columns:
        raise KernelError(f"kernels: x has shape {tuple(x.shape)}; the weights take (tokens, {columns})")


def check_heads(x: Tensor, columns: int, heads: int) -> None:
    if heads < 1 or columns % heads or x.ndim != 2 or x.shape[1] % heads or x.shape[1] < columns:
        raise KernelError(
            f"kernels: x has shape {tuple(x.shape)}; the weights take {columns} columns of {heads} heads, each with at "
            f"least its share of them"
        )


def check_scales(name: str, weight: Tensor, scales: Tensor, group: int, columns: int) -> None:
    """int4 has a scale a group, int8 a float32 scale a row, bfloat16 none."""
    if weight.dtype == torch.bfloat16:
        return
    groups = columns // group if weight.dtype == torch.int32 and group else 1
    expected = (*weight.shape[:-1], groups)
    if scales.shape != expected:
        raise KernelError(f"kernels: {name} has shape {tuple(scales.shape)}; the weights imply {expected}")


def check_choices(x: Tensor, ids: Tensor, routing: Tensor) -> None:
    if ids.ndim != 2 or ids.shape != routing.shape or ids.shape[0] != x.shape[0]:
        raise KernelError(
            f"kernels: ids {tuple(ids.shape)} and routing {tuple(routing.shape)} must both be "
            f"({x.shape[0]} tokens, top_k)"
        )
    if ids.dtype not in (torch.int32, torch.int64):
        raise KernelError(f"kernels: ids are {ids.dtype}; expected int32 or int64")


def check_scores(logits: Tensor, bias: Tensor | None) -> None:
    if logits.ndim != 2 or logits.dtype != torch.float32:
        raise KernelError(
            f"kernels: logits are {tuple(logits.shape)} of {logits.dtype}; expected (tokens, experts) float32"
        )
    check_bias(bias, logits.shape[1])


def check_bias(bias: Tensor | None, experts: int) -> None:
    if bias is not None and (bias.shape != (experts,) or bias.dtype != torch.float32):
        raise KernelError(f"kernels: bias is {tuple(bias.shape)} of {bias.dtype}; expected {(experts,)} float32")


def check_like(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise KernelError(f"kernels: {name} is {tuple(tensor.shape)} of {tensor.dtype}; expected {shape} of {dtype}")
