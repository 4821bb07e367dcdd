"""bfloat16 weights on a CPU that has no bfloat16 product. Knows vLLM's linears; never a model.

There torch multiplies bfloat16 at an eighth of the speed of float32. Weights stay as they are and are widened anew for
each product, which costs what some dozens of rows cost: worth it for the thousands of a picture, never for one token.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.platforms import current_platform

from kimi_serve import cpu


@functools.cache
def are_slow() -> bool:
    """Whether this is a CPU that multiplies bfloat16 without instructions for it."""
    return bool(current_platform.is_cpu() and not cpu.has_bfloat16(cpu.flags()))


def dtype_for(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type of activations where weights have `dtype`."""
    return torch.float32 if device.type == "cpu" and are_slow() else dtype


def widen(module: nn.Module) -> None:
    """Let the plain linears within take float32 activations, where that is faster; quantized ones take them as is."""
    if not are_slow():
        return
    for layer in module.modules():
        if isinstance(layer, LinearBase) and type(layer.quant_method) is UnquantizedLinearMethod:
            layer.quant_method = WideLinear()


class WideLinear(UnquantizedLinearMethod):
    """float32 activations meet float32 weights; others go vLLM's way."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        layer.cpu_linear = F.linear  # not packed: `apply` reads the weights

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if x.dtype != torch.float32:
            return super().apply(layer, x, bias)
        return F.linear(x, layer.weight.float(), None if bias is None else bias.float())
