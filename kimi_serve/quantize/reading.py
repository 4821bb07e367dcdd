"""A checkpoint's weights as float32, whether quantized or not. Knows formats; never what a layer computes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kimi_serve.quantize.packing import dequantize, unpack
from kimi_serve.quantize.scheme import INT8, Format, int4
from kimi_serve.quantize.source import Weights

Observe = Callable[[str, Tensor], None]  # a weight's name, and what is multiplied with it: (tokens, width)


@dataclass(frozen=True, slots=True)
class Linear:
    """One weight in memory."""

    name: str
    weight: Tensor  # (out, in) float32
    bias: Tensor | None
    quantizes_activations: bool
    observe: Observe | None

    def __call__(self, x: Tensor) -> Tensor:
        if self.observe is not None:
            self.observe(self.name, x)
        return F.linear(round_to_int8(x) if self.quantizes_activations else x, self.weight, self.bias)


class Model:
    """Reads tensors when they are asked for, and keeps none."""

    def __init__(self, weights: Weights, observe: Observe | None = None) -> None:
        self.weights = weights
        self.observe = observe

    def format_of(self, name: str) -> Format | None:
        """How a weight is stored, told by what is stored beside it."""
        tensors = self.weights.tensors
        if (packed := tensors.get(f"{name}_packed")) is not None:
            return int4(packed.shape[1] * 8 // tensors[f"{name}_scale"].shape[1])
        return INT8 if f"{name}_scale" in tensors else None

    def tensor(self, name: str) -> Tensor:
        return self.rows(name, 0, None)

    def height(self, name: str) -> int:
        return self.weights.tensors[f"{name}_scale" if self.format_of(name) else name].shape[0]

    def rows(self, name: str, start: int, stop: int | None) -> Tensor:
        """Rows [start, stop) as the kernels see them."""
        form = self.format_of(name)
        if form is None:
            return self.weights.rows(name, start, stop).float()
        scale = self.weights.rows(f"{name}_scale", start, stop)
        if form.bits == 4:
            return dequantize(unpack(self.weights.rows(f"{name}_packed", start, stop)), scale).float()
        return dequantize(self.weights.rows(name, start, stop), scale).float()

    def linear(self, module: str, start: int = 0, stop: int | None = None) -> Linear:
        """Rows [start, stop) of a linear layer."""
        name, bias = f"{module}.weight", f"{module}.bias"
        form = self.format_of(name)
        return Linear(
            name,
            self.rows(name, start, stop),
            self.rows(bias, start, stop) if bias in self.weights.tensors else None,
            form is not None and form.quantizes_activations,
            self.observe,
        )


def round_to_int8(x: Tensor) -> Tensor:
    """What an int8 kernel makes of its input: integers with one scale a token."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (x / scale).round_().clamp_(-127, 127).mul_(scale)
