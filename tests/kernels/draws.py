"""Random matrices in the three formats, as tensors and as the reference's numbers. Knows formats; judges nothing."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kimi_serve.quantize.packing import pack
from tests.kernels.reference import Array, Matrix

FORMATS = ("int4", "int8", "bf16")


@dataclass(frozen=True, slots=True)
class Weights:
    """`count` matrices (rows, columns) of one format."""

    packed: Tensor  # (count, rows, columns or columns / 8)
    scales: Tensor  # (count, rows, groups)
    matrices: list[Matrix]


def draw(
    rng: np.random.Generator, form: str, count: int, rows: int, columns: int, group: int, scale_dtype: torch.dtype
) -> Weights:
    if form == "bf16":
        values = torch.from_numpy(rng.normal(size=(count, rows, columns)) / columns**0.5).to(torch.bfloat16)
        ones = np.ones((rows, 1))
        return Weights(values, torch.empty(0), [Matrix(one, ones) for one in as_float64(values)])
    low, high, groups = (-8, 8, columns // group) if form == "int4" else (-127, 128, 1)
    integers = rng.integers(low, high, size=(count, rows, columns), dtype=np.int8)
    spread = rng.uniform(0.2, 1.8, size=(count, rows, groups)) / (high * columns**0.5)
    if form == "int4":  # the quantizer chooses negative scales too
        spread *= rng.choice([-1, 1], size=spread.shape)
    scales = torch.from_numpy(spread).to(scale_dtype if form == "int4" else torch.float32)
    tensor = torch.from_numpy(integers)
    packed = torch.stack([pack(one) for one in tensor]) if form == "int4" else tensor
    matrices = [
        Matrix(one.astype(np.float64), scale, offset=8 if form == "int4" else 0)
        for one, scale in zip(integers, as_float64(scales), strict=True)
    ]
    return Weights(packed, scales, matrices)


def draw_tokens(rng: np.random.Generator, tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Rows of very different sizes, some with a single large value, as hidden states are."""
    x = rng.normal(size=(tokens, columns)) * 10.0 ** rng.uniform(-3, 2, size=(tokens, 1))
    outliers = rng.integers(0, columns, size=tokens)
    x[np.arange(tokens), outliers] *= rng.choice([0, 1, 30], size=tokens)
    return torch.from_numpy(x).to(dtype)


def as_float64(tensor: Tensor) -> Array:
    return tensor.double().numpy()


def as_float32(tensor: Tensor) -> Array:
    return tensor.float().numpy()
