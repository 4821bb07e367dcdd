"""Adapters as LLaMA-Factory leaves them, drawn at random. Knows PEFT's files; nothing of what becomes of them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kimi_serve.inputs.adapter import linears_of
from kimi_serve.inputs.config import parse_model_config

ROOT = "base_model.model."

# What PEFT 0.15 writes beside rank, alpha and targets.
_REST: dict[str, object] = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "base_model_name_or_path": "moonshotai/Kimi-VL-A3B-Instruct",
    "bias": "none",
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_dropout": 0.0,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "qalora_group_size": 16,
    "rank_pattern": {},
    "revision": None,
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def recipe(module: str) -> bool:
    """LLaMA-Factory's published recipe for this model: attention's ends, and every feed-forward layer."""
    return module.startswith("language_model.model.") and module.endswith(
        ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    )


def draw(
    directory: Path,
    checkpoint: Path,
    chosen: Callable[[str], bool] = recipe,
    *,
    rank: int = 8,
    alpha: float = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    size: float = 0.2,
    **changes: object,
) -> dict[str, torch.Tensor]:
    """Write an adapter of the chosen linears; its tensors. Unscaled products are about `size` times the weights."""
    generator = torch.Generator().manual_seed(seed)
    linears = linears_of(parse_model_config(json.loads((checkpoint / "config.json").read_text())))
    modules = [module for module in linears if chosen(module)]
    weights = stored(checkpoint)
    tensors = {}
    for module in modules:
        out, width = linears[module]
        spread = float(weights[f"{module}.weight"].float().std()) * size
        a = torch.randn(rank, width, generator=generator) / rank**0.5
        b = torch.randn(out, rank, generator=generator) * spread
        tensors[f"{ROOT}{module}.lora_A.weight"] = a.to(dtype)
        tensors[f"{ROOT}{module}.lora_B.weight"] = b.to(dtype)
    write(directory, tensors, {"r": rank, "lora_alpha": alpha, "target_modules": modules} | changes)
    return tensors


def write(directory: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, object]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), directory / "adapter_model.safetensors", {"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(_REST | dict(config)))


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}
