"""Our vision tower and vLLM's own on a CPU, with the same random weights. Knows both; measures nothing."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.models.moonvit import MoonVitPretrainedModel
from vllm.transformers_utils.configs.moonvit import MoonViTConfig

from kimi_serve.inputs.config import ImageConfig, VisionConfig
from kimi_serve.model.moonvit import MoonViT

Weights = Mapping[str, torch.Tensor]


@contextmanager
def alone() -> Iterator[None]:
    """vLLM's state for one rank, in which its layers can be made and run. Once a process."""
    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(VllmConfig()), torch.inference_mode():
        init_distributed_environment(1, 0, f"file://{folder}/meeting", 0, "gloo")
        initialize_model_parallel(1)
        yield


def draw(name: str, weight: torch.Tensor) -> None:
    """Activations neither vanish nor grow; call torch.manual_seed before."""
    if name.endswith("bias"):
        weight.normal_(0, 0.02)
    elif "norm" in name:
        weight.normal_(1, 0.05)
    elif name.endswith("pos_emb.weight"):
        weight.normal_(0, 0.05)
    else:
        weight.normal_(0, math.prod(weight.shape[1:]) ** -0.5)


def ours(
    vision: VisionConfig, image: ImageConfig, dtype: torch.dtype, fill: Callable[[str, torch.Tensor], object] = draw
) -> tuple[MoonViT, Weights]:
    """The tower, and its weights by name: vLLM may pack those that a layer holds, and remove them."""
    with _default(dtype):
        tower = MoonViT(vision, image, prefix="ours")
    for name, weight in tower.named_parameters():
        fill(name, weight)
    weights = {name: weight.clone() for name, weight in tower.named_parameters()}
    _finish(tower)
    return tower, weights


def in_tree(vision: VisionConfig, weights: Weights, dtype: torch.dtype) -> MoonVitPretrainedModel:
    """vLLM's, with the weights of ours."""
    config = MoonViTConfig(
        patch_size=vision.patch_size,
        init_pos_emb_height=vision.init_pos_emb_height,
        init_pos_emb_width=vision.init_pos_emb_width,
        num_attention_heads=vision.num_attention_heads,
        num_hidden_layers=vision.num_hidden_layers,
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        merge_kernel_size=vision.merge_kernel_size,
    )
    with _default(dtype):
        theirs = MoonVitPretrainedModel(config, prefix="in-tree")
    left = {name.replace(".attn.", "."): weight for name, weight in weights.items()}
    for name, weight in theirs.named_parameters():
        weight.copy_(left.pop(name))
    assert not left
    _finish(theirs)
    return theirs


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _finish(tower: nn.Module) -> None:
    """What vLLM's loader does when all weights are there."""
    for layer in tower.modules():
        if hasattr(layer, "quant_method"):
            layer.quant_method.process_weights_after_loading(layer)
