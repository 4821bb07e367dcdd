"""The published choice of experts in one call of our kernels, beside which vLLM's takes some fifteen. Knows scores."""

import torch
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.platforms import current_platform

import kimi_serve.kernels.ops  # noqa: F401  defines torch.ops.kimi_serve


def uses_our_kernels(quant: QuantizationConfig | None) -> bool:
    if not current_platform.is_cpu():
        return False
    from kimi_serve.model.cpu_compressed import CpuCompressedTensors  # loads what only a CPU needs

    return isinstance(quant, CpuCompressedTensors)


class KernelRouting:
    """What vLLM's runner calls in place of its own grouped top-k; the model has one group."""

    def __init__(self, bias: torch.Tensor | None) -> None:
        self._bias = bias

    def __call__(
        self, hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = torch.ops.kimi_serve.route(gating_output, self._bias, topk, renormalize)
        return weights, ids
