"""A decoder layer on a CPU in a few calls of our kernels. Knows vLLM's modules; never how a product is made.

What lies between the products of a token (views, copies, casts, and Python around each) took a third of its time
(benchmarks/LOG.md). So attention's inputs are one call and a feed-forward is one call; the modules stay vLLM's and hold
the weights. A part of a layer whose matrices are not all in one form runs as elsewhere.
"""

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import QuantizationConfig

import kimi_serve.kernels.layers  # noqa: F401  defines torch.ops.kimi_serve
from kimi_serve.inputs.config import TextConfig
from kimi_serve.model.attention import ExpandedAttention
from kimi_serve.model.cpu_compressed import CompressedTensorsCpuExperts, CpuLinearScheme, Form
from kimi_serve.model.moe import DenseMLP, SparseMLP


class KernelAttention(ExpandedAttention):
    """Queries, keys and values in one call; the output's padding is left out by the last product itself."""

    def __init__(self, text: TextConfig, vllm_config: VllmConfig, prefix: str, reduce_results: bool = True) -> None:
        super().__init__(text, vllm_config, prefix, reduce_results)
        self.form = common_form(self.q_proj, self.kv_a_proj_with_mqa, self.kv_b_proj, self.o_proj)

    def inputs(self, positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.form is None:
            return super().inputs(positions, x)
        return torch.ops.kimi_serve.latent.default(
            x,
            positions,
            self.rotary_emb.rope.cos_sin_cache,
            self.kv_a_layernorm.weight,
            self.kv_a_layernorm.variance_epsilon,
            self.local_heads,
            *packed(self.q_proj, self.form),
            *packed(self.kv_a_proj_with_mqa, self.form),
            *packed(self.kv_b_proj, self.form),
            self.form.group,
            self.form.exact,
        )

    def output(self, heads: Tensor) -> Tensor:
        if self.form is None:
            return super().output(heads)
        weights = packed(self.o_proj, self.form)
        return torch.ops.kimi_serve.linear.default(heads, *weights, self.form.group, self.form.exact, self.local_heads)


class KernelMLP(DenseMLP):
    """Both products and what is between them in one call."""

    def __init__(self, hidden: int, intermediate: int, quant: QuantizationConfig | None, prefix: str) -> None:
        super().__init__(hidden, intermediate, quant, prefix)
        self.form = common_form(self.gate_up_proj, self.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        form = self.form
        if form is None:
            return super().forward(x)
        weights = (*packed(self.gate_up_proj, form), *packed(self.down_proj, form))
        return torch.ops.kimi_serve.mlp.default(x, *weights, form.group, form.exact)


class KernelSparseMLP(SparseMLP):
    """Router, shared and routed experts and their sum in one call; vLLM's runner only holds the weights."""

    def __init__(self, text: TextConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__(text, vllm_config, prefix)
        self.text = text
        method = self.experts.routed_experts.quant_method
        shared = common_form(self.shared_experts.gate_up_proj, self.shared_experts.down_proj)
        is_one = isinstance(method, CompressedTensorsCpuExperts) and method.form == shared
        self.form = shared if is_one else None
        if self.form is not None:
            self.gate.quant_method = KeptWeight()

    def forward(self, x: Tensor) -> Tensor:
        form, text, shared = self.form, self.text, self.shared_experts
        if form is None:
            return super().forward(x)
        routed = self.experts.routed_experts
        return torch.ops.kimi_serve.sparse.default(
            x,
            self.gate.weight,
            self.gate.e_score_correction_bias,
            text.num_experts_per_tok,
            text.norm_topk_prob,
            text.routed_scaling_factor,
            getattr(routed, f"w13_{form.suffix}"),
            routed.w13_weight_scale,
            getattr(routed, f"w2_{form.suffix}"),
            routed.w2_weight_scale,
            *packed(shared.gate_up_proj, form),
            *packed(shared.down_proj, form),
            form.group,
            form.exact,
        )


class KeptWeight(UnquantizedLinearMethod):
    """vLLM's own method packs a weight for its products on CPUs and drops it."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        pass


def common_form(*linears: LinearBase) -> Form | None:
    """How all of these are stored; None where one differs, or is not on our kernels."""
    schemes = [getattr(linear, "scheme", None) for linear in linears]  # vLLM sets it on quantized layers only
    forms = {scheme.form if isinstance(scheme, CpuLinearScheme) else None for scheme in schemes}
    return forms.pop() if len(forms) == 1 else None


def packed(linear: LinearBase, form: Form) -> tuple[Tensor, Tensor]:
    return getattr(linear, form.suffix), linear.weight_scale
