"""The decoder's norm: vLLM's layer, and on CPUs one call of our kernels where vLLM's is a dozen of torch's."""

import torch
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform

import kimi_serve.kernels.layers  # noqa: F401  defines torch.ops.kimi_serve
from kimi_serve.kernels import library

DTYPES = (torch.float32, torch.bfloat16)  # that the kernels know


class KernelNorm(RMSNorm):
    """vLLM calls `forward_cpu` where it runs layers as they are; compiled, its plain norm becomes one loop anyway."""

    def forward_cpu(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            return torch.ops.kimi_serve.norm.default(x, self.weight, self.variance_epsilon)
        return torch.ops.kimi_serve.add_norm.default(x, residual, self.weight, self.variance_epsilon)


def norm(size: int, eps: float) -> RMSNorm:
    on_kernels = current_platform.is_cpu() and library.is_available() and torch.get_default_dtype() in DTYPES
    return (KernelNorm if on_kernels else RMSNorm)(size, eps=eps)
