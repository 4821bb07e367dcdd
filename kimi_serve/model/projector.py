"""The projector: four sub-patches of a token -> one text embedding. Knows neither images nor text."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.vision import is_vit_use_data_parallel

from kimi_serve.inputs.config import VisionConfig
from kimi_serve.model import cpu_products
from kimi_serve.model.moonvit import Norm

TOKENS = 4_096  # at a time: memory does not grow with the request


class Projector(nn.Module):
    """(tokens, merge, vision hidden) -> (tokens, text hidden). The norm sees sub-patches; GELU is the exact one."""

    def __init__(
        self, vision: VisionConfig, text_hidden: int, quant: QuantizationConfig | None = None, prefix: str = ""
    ) -> None:
        super().__init__()
        merged = vision.hidden_size * math.prod(vision.merge_kernel_size)
        replicate = is_vit_use_data_parallel()
        self.pre_norm = Norm(vision.hidden_size)
        self.linear_1 = ColumnParallelLinear(
            merged, merged, quant_config=quant, prefix=f"{prefix}.linear_1", disable_tp=replicate
        )
        self.linear_2 = RowParallelLinear(
            merged, text_hidden, quant_config=quant, prefix=f"{prefix}.linear_2", disable_tp=replicate
        )
        cpu_products.widen(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self._project(part) for part in x.split(TOKENS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype
        x = self.pre_norm(x.to(cpu_products.dtype_for(x.device, dtype))).flatten(1)  # (tokens, merge*hidden)
        x, _ = self.linear_1(x)
        x, _ = self.linear_2(F.gelu(x))
        return x.to(dtype)
