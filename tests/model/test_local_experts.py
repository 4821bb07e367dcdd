"""Experts by local ids: what our work-around computes, and the upstream fault that asks for it."""

import dis

import pytest
import torch
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

from kimi_serve.model.local_experts import LocalRouting

EXPERTS, TOP = 8, 3


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(16, EXPERTS, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bias() -> torch.Tensor:
    return torch.randn(EXPERTS, generator=torch.Generator().manual_seed(1))


def test_ranks_together_choose_what_one_alone_chooses(logits, bias):
    hidden = torch.empty(16, 4)
    whole = LocalRouting(bias, lambda: None)(hidden, logits, TOP, True)
    maps = [torch.tensor([0, 1, 2, 3, -1, -1, -1, -1]), torch.tensor([-1, -1, -1, -1, 0, 1, 2, 3])]
    dense = torch.zeros(16, EXPERTS)
    for rank, expert_map in enumerate(maps):
        weights, ids = LocalRouting(bias, lambda expert_map=expert_map: expert_map)(hidden, logits, TOP, True)
        assert 0 <= ids.min() <= ids.max() < 4
        dense.scatter_add_(1, ids + 4 * rank, weights)
    assert torch.equal(dense, torch.zeros(16, EXPERTS).scatter_(1, whole[1], whole[0]))


def test_bias_steers_the_choice_and_leaves_the_weights(logits):
    bias = torch.zeros(EXPERTS)
    bias[5] = 10
    weights, ids = LocalRouting(bias, lambda: None)(torch.empty(16, 4), logits, TOP, False)
    assert (ids == 5).any(-1).all()
    assert torch.equal(weights, logits.sigmoid().gather(1, ids))


def test_vllms_cpu_experts_still_ignore_where_experts_are():
    """When this fails, vLLM reads `expert_map` on CPUs: delete kimi_serve/model/local_experts.py and its use."""
    apply = CPUUnquantizedExperts.apply
    assert "expert_map" in apply.__code__.co_varnames
    assert not [step for step in dis.get_instructions(apply) if step.argval == "expert_map"]
