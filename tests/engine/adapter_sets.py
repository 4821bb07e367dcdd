"""The adapters that engines are given: two that are served, and those that are refused. Knows files; starts nothing."""

from collections.abc import Callable
from pathlib import Path

from tests.merge import adapters

LAYER = "language_model.model.layers.1"
DECODER = ("q_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWER = ("wqkv", "wo", "fc0", "fc1", "linear_1", "linear_2")


def write(root: Path, checkpoint: Path, *, absorbed: bool) -> None:
    """`absorbed`: the engine caches latents, so kv_b_proj is not served."""
    wide = DECODER + TOWER + (() if absorbed else ("kv_b_proj",))
    served, refused = root / "served", root / "refused"
    adapters.draw(served / "wide", checkpoint, lambda module: ".experts." not in module and module.endswith(wide))
    narrow = ends_with("layers.0.self_attn.q_proj", "layers.1.mlp.shared_experts.up_proj", "layers.3.self_attn.o_proj")
    adapters.draw(served / "narrow", checkpoint, narrow, rank=4, alpha=4, seed=1, use_rslora=True, size=0.3)
    adapters.draw(refused / "experts", checkpoint, ends_with("experts.0.up_proj", "layers.2.self_attn.q_proj"))
    adapters.draw(refused / "head", checkpoint, ends_with("lm_head"))
    adapters.draw(refused / "dora", checkpoint, ends_with(f"{LAYER}.self_attn.q_proj"), use_dora=True)
    if absorbed:
        adapters.draw(refused / "absorbed", checkpoint, ends_with(f"{LAYER}.self_attn.kv_b_proj"))
    small = adapters.draw(refused / "small", checkpoint, ends_with(f"{LAYER}.self_attn.q_proj"), rank=4)
    halved = {name: tensor[:, :16].contiguous() if "lora_A" in name else tensor for name, tensor in small.items()}
    adapters.write(refused / "small", halved, {"r": 4, "lora_alpha": 4})


def ends_with(*ends: str) -> Callable[[str], bool]:
    return lambda module: module.endswith(ends)
