"""Expert parallelism on CPUs: each rank's own experts under local ids. Knows scores and ids; never a weight.

vLLM 0.32.0's unquantized CPU kernel takes expert ids as rows of this rank's weights and is never told which experts
those are (`CPUUnquantizedExperts.apply` ignores `expert_map`), so a global id reads past their end: the worker dies.
tests/model/test_local_experts.py fails when that is mended; then this file goes, and moe.py names no routing function.
"""

from collections.abc import Callable

import torch
from vllm.config import ParallelConfig
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.platforms import current_platform


def needs_local_ids(parallel: ParallelConfig, quant: QuantizationConfig | None) -> bool:
    return current_platform.is_cpu() and parallel.enable_expert_parallel and quant is None


class LocalRouting:
    """The published choice of experts; those of other ranks get weight 0, and ids are local to this rank."""

    def __init__(self, bias: torch.Tensor | None, expert_map: Callable[[], torch.Tensor | None]) -> None:
        """`expert_map()`: (experts,) local id of each expert, -1 for another rank's; None when all are here."""
        self._bias = bias
        self._expert_map = expert_map

    def __call__(
        self, hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = gating_output.float().sigmoid()  # (tokens, experts)
        choice = scores if self._bias is None else scores + self._bias
        ids = choice.topk(topk, dim=-1).indices
        weights = scores.gather(1, ids)
        if renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        expert_map = self._expert_map()
        if expert_map is None:
            return weights, ids
        local = expert_map[ids]
        return weights * (local >= 0), local.clamp(min=0)
