"""The decoder's norm: vLLM's layer, and one call of our kernels where the layers run on these."""

import torch
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.quantization import QuantizationConfig

import kimi_serve.kernels.layers  # noqa: F401  defines torch.ops.kimi_serve
from kimi_serve.model.cpu_routing import uses_our_kernels

DTYPES = (torch.float32, torch.bfloat16)  # that the kernels know


class KernelNorm(RMSNorm):
    """vLLM calls `forward_cpu` where it runs layers as they are; compiled, its plain norm becomes one loop anyway."""

    def forward_cpu(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            return torch.ops.kimi_serve.norm.default(x, self.weight, self.variance_epsilon)
        return torch.ops.kimi_serve.add_norm.default(x, residual, self.weight, self.variance_epsilon)


def norm(size: int, eps: float, quant: QuantizationConfig | None) -> RMSNorm:
    """Rounded once in the kernel. The published bfloat16 rounds before the weight too, which turns near ties between
    experts the other way: a checkpoint that is not quantized keeps its roundings.
    """
    on_kernels = uses_our_kernels(quant) and torch.get_default_dtype() in DTYPES
    return (KernelNorm if on_kernels else RMSNorm)(size, eps=eps)
