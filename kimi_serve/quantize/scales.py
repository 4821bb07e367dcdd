"""From floats to integers and scales, with less error than rounding to nearest. Knows numbers; never a name or a file.

Rounding to nearest takes the scale that just reaches the largest value of a group. A smaller one clips that value and
serves all others better, so a dozen scales are tried, the best is refined by least squares, and the one with the
least (weighted) squared error is kept. Every candidate is rounded to the type in which it will be stored before it is
judged, and rounding to nearest is among them: no group is ever worse than with it.

int4 has eight levels below zero and seven above, so its scales are negative where a group's largest value is positive:
that value then sits on the eighth level. Kernels multiply by a scale; its sign is nothing to them.
"""

import torch
from torch import Tensor

from kimi_serve.quantize.scheme import Format

INT4_STEPS = tuple(0.60 + 0.42 * k / 12 for k in range(13))  # of the scale that puts the largest value on -8
INT8_STEPS = (*(0.70 + 0.30 * k / 12 for k in range(13)), 127 / 127.5)
REFINEMENTS = 1


def quantize(
    weight: Tensor, form: Format, scale_dtype: torch.dtype, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """weight (rows, width) -> integers (rows, width) int8, scales (rows, groups) in `scale_dtype`.

    `importance` (width,) weighs the squared error of each column. Raise ValueError where a value is not finite.
    """
    rows, width = weight.shape
    grouped = weight.float().view(rows, form.groups(width), -1)
    if not bool(grouped.isfinite().all()):
        raise ValueError("holds a value that is not finite")
    weights = None if importance is None else importance.sqrt().view(1, form.groups(width), -1)
    scale = best_scale(grouped, form, scale_dtype, weights)
    integers = _round(grouped, scale, form).to(torch.int8).view(rows, width)
    return integers, scale.squeeze(-1).to(scale_dtype)


def best_scale(x: Tensor, form: Format, dtype: torch.dtype, weights: Tensor | None) -> Tensor:
    """x (rows, groups, size) -> float32 (rows, groups, 1), exactly as `dtype` will hold it.

    `weights` (1, groups, size) multiply each column's error, before it is squared.
    """
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    nearest = round_to_nearest_scale(x, form, dtype)
    best, least = nearest, _error(x, nearest, form, weights)
    base, steps = (largest / form.lowest, INT4_STEPS) if form.bits == 4 else (largest.abs() / form.highest, INT8_STEPS)
    for step in steps:
        best, least = _better(x, _stored(base * step, dtype), best, least, form, weights)
    for _ in range(REFINEMENTS):
        best, least = _better(x, _least_squares(x, best, form, dtype, weights), best, least, form, weights)
    return best


def round_to_nearest_scale(x: Tensor, form: Format, dtype: torch.dtype) -> Tensor:
    """Return the scale of compressed-tensors' own min-max observer: the range over half the number of steps."""
    return _stored(x.abs().amax(-1, keepdim=True) / (2**form.bits / 2 - 0.5), dtype)


def _better(
    x: Tensor, candidate: Tensor, best: Tensor, least: Tensor, form: Format, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    error = _error(x, candidate, form, weights)
    return torch.where(error < least, candidate, best), torch.minimum(error, least)


def _error(x: Tensor, scale: Tensor, form: Format, weights: Tensor | None) -> Tensor:
    off = _round(x, scale, form).mul_(scale).sub_(x)
    return torch.linalg.vector_norm(off if weights is None else off.mul_(weights), dim=-1, keepdim=True)


def _round(x: Tensor, scale: Tensor, form: Format) -> Tensor:
    return (x / scale).round_().clamp_(form.lowest, form.highest)


def _least_squares(x: Tensor, scale: Tensor, form: Format, dtype: torch.dtype, weights: Tensor | None) -> Tensor:
    """Return the scale that fits the integers which `scale` leads to; `scale` where all of them are zero."""
    q = _round(x, scale, form)
    weighted = q if weights is None else q * weights.square()
    norm = (weighted * q).sum(-1, keepdim=True)
    fitted = (weighted * x).sum(-1, keepdim=True) / norm
    return torch.where(norm > 0, _stored(fitted.nan_to_num(), dtype), scale)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to the stored type and keep away from zero: a group of zeros has a scale too."""
    limits = torch.finfo(dtype)
    magnitude = scale.abs().to(dtype).float().clamp(limits.tiny, limits.max)
    return torch.where(scale < 0, -magnitude, magnitude)
