"""Our routing beside vLLM's, which it stands in for where the experts are ours."""

import torch
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from kimi_serve.model.cpu_routing import KernelRouting

EXPERTS, TOP = 64, 6


def test_the_kernel_chooses_and_weighs_as_vllms_router_does() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, bias = torch.randn(50, EXPERTS, generator=generator), torch.randn(EXPERTS, generator=generator) * 0.1
    shared = {"top_k": TOP, "global_num_experts": EXPERTS, "renormalize": True, "scoring_func": "sigmoid"}
    groups = {"use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1, "e_score_correction_bias": bias}
    dense = []
    for router in (CPURouter(**shared, **groups), CPURouter(**shared, custom_routing_function=KernelRouting(bias))):
        weights, ids = router.select_experts(torch.empty(50, 8), logits, topk_indices_dtype=None)
        assert weights.dtype == torch.float32
        dense.append(torch.zeros(50, EXPERTS).scatter_(1, ids.long(), weights))
    torch.testing.assert_close(*dense, rtol=1e-6, atol=1e-7)
