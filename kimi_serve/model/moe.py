"""Feed-forward layers of the decoder: the dense one and the mixture of experts. Knows one layer."""

import torch
from torch import nn
from vllm._aiter_ops import rocm_aiter_ops
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.fused_moe import FusedMoEFactory, GateLinear
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.utils import sequence_parallel_chunk

from kimi_serve.inputs.config import TextConfig
from kimi_serve.model.cpu_routing import KernelRouting, uses_our_kernels
from kimi_serve.model.local_experts import LocalRouting, needs_local_ids
from kimi_serve.model.lora import without_adapters


class DenseMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        quant: QuantizationConfig | None,
        prefix: str,
        *,
        reduce_results: bool = True,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden,
            [intermediate] * 2,
            bias=False,
            quant_config=quant,
            disable_tp=replicate,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            intermediate,
            hidden,
            bias=False,
            quant_config=quant,
            reduce_results=reduce_results,
            disable_tp=replicate,
            prefix=f"{prefix}.down_proj",
        )
        self.activation = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.gate_up_proj(x)
        x, _ = self.down_proj(self.activation(x))
        return x


class Router(GateLinear):
    """Expert scores in float32 throughout, as published: a bf16 score flips near-ties between experts."""

    def __init__(self, text: TextConfig, prefix: str) -> None:
        super().__init__(
            text.hidden_size,
            text.n_routed_experts,
            out_dtype=torch.float32,
            force_fp32_compute=True,
            prefix=prefix,
        )
        # Steers the choice of experts, never their weights. "greedy" checkpoints have none.
        self.e_score_correction_bias = (
            nn.Parameter(torch.empty(text.n_routed_experts, dtype=torch.float32))
            if text.topk_method == "noaux_tc"
            else None
        )


class SparseMLP(nn.Module):
    """Routed experts plus shared experts; the routed sum is scaled, the shared one is not."""

    def __init__(self, text: TextConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        parallel, quant = vllm_config.parallel_config, vllm_config.quant_config
        self.sequence_parallel = parallel.use_sequence_parallel_moe
        self.gate = Router(text, f"{prefix}.gate")
        self.shared_experts = DenseMLP(
            text.hidden_size,
            text.moe_intermediate_size * text.n_shared_experts,
            quant,
            f"{prefix}.shared_experts",
            reduce_results=False,  # vLLM's MoE runner adds and reduces once
            replicate=self.sequence_parallel,
        )
        bias = self.gate.e_score_correction_bias
        routing: LocalRouting | KernelRouting | None = None
        if needs_local_ids(parallel, quant):
            routing = LocalRouting(bias, lambda: self.experts.expert_map)
        elif uses_our_kernels(quant):
            routing = KernelRouting(bias)
        with without_adapters(vllm_config):
            self.experts = FusedMoEFactory(
                shared_experts=self.shared_experts,
                gate=self.gate,
                num_experts=text.n_routed_experts,
                top_k=text.num_experts_per_tok,
                hidden_size=text.hidden_size,
                intermediate_size=text.moe_intermediate_size,
                renormalize=text.norm_topk_prob,
                quant_config=quant,
                custom_routing_function=routing,
                use_grouped_topk=routing is None,
                num_expert_group=text.n_group,
                topk_group=text.topk_group,
                prefix=f"{prefix}.experts",
                scoring_func=text.scoring_func,
                routed_scaling_factor=text.routed_scaling_factor,
                # AITER's kernels scale the weights themselves; elsewhere the runner scales the routed sum.
                apply_routed_scale_to_output=not rocm_aiter_ops.is_fused_moe_enabled(),
                e_score_correction_bias=bias,
                enable_eplb=parallel.enable_eplb,
                num_redundant_experts=parallel.eplb_config.num_redundant_experts,
                is_sequence_parallel=self.sequence_parallel,
                router_logits_dtype=torch.float32,
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.shape[0]
        if self.sequence_parallel:
            x = sequence_parallel_chunk(x)
        x = self.experts(hidden_states=x, router_logits=x)  # the runner calls the gate, overlapped where it can
        if self.sequence_parallel:
            x = tensor_model_parallel_all_gather(x, 0)[:tokens]
        return x
