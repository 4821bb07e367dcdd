"""The join: pictures and token ids in, hidden states and logits out. Knows the published names; knows no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.oracle.decoder import LanguageModel, TextShape
from tests.oracle.moonvit import Projector, VisionShape, VisionTower


class KimiVl(nn.Module):
    """Parameter names are the published checkpoint's names."""

    def __init__(self, vision: VisionShape, text: TextShape, media_id: int) -> None:
        super().__init__()
        self.media_id = media_id
        self.vision_tower = VisionTower(vision)
        self.multi_modal_projector = Projector(vision.hidden, text.hidden)
        self.language_model = LanguageModel(text)

    def see(self, pixels: Tensor, height: int, width: int) -> Tensor:
        """Normalised patches (images, height*width, 3, 14, 14) of one grid -> (images, tokens, text hidden)."""
        rows: Tensor = self.multi_modal_projector(self.vision_tower(pixels, height, width))
        return rows

    def hidden(self, ids: Tensor, image_rows: Tensor | None) -> Tensor:
        """Ids (batch, length), right-padded; image rows (tokens of all images in order, hidden)."""
        x = self.language_model.model.embed_tokens(ids)
        if image_rows is not None:
            where = (ids == self.media_id).flatten().nonzero()[:, 0]
            assert len(where) == len(image_rows), f"{len(where)} placeholders for {len(image_rows)} image rows"
            x = x.flatten(0, 1).index_copy(0, where, image_rows).view_as(x)
        y: Tensor = self.language_model.model(x)
        return y

    def logits(self, hidden: Tensor) -> Tensor:
        y: Tensor = self.language_model.lm_head(hidden)
        return y


def normalise(patches: Tensor) -> Tensor:
    """uint8 pixels -> float32 in [-1, 1], mean and deviation 0.5."""
    return (patches.float() / 255 - 0.5) / 0.5


def vision_shape(config: dict[str, Any]) -> VisionShape:
    v = config["vision_config"]
    return VisionShape(
        hidden=v["hidden_size"],
        heads=v["num_attention_heads"],
        layers=v["num_hidden_layers"],
        intermediate=v["intermediate_size"],
        patch=v["patch_size"],
        table_height=v["init_pos_emb_height"],
        table_width=v["init_pos_emb_width"],
    )


def text_shape(config: dict[str, Any]) -> TextShape:
    t = config["text_config"]
    return TextShape(
        vocab=t["vocab_size"],
        hidden=t["hidden_size"],
        intermediate=t["intermediate_size"],
        layers=t["num_hidden_layers"],
        heads=t["num_attention_heads"],
        experts=t["n_routed_experts"],
        top_k=t["num_experts_per_tok"],
        moe_intermediate=t["moe_intermediate_size"],
        shared_experts=t["n_shared_experts"],
        scaling=t["routed_scaling_factor"],
        kv_rank=t["kv_lora_rank"],
        nope=t["qk_nope_head_dim"],
        rope=t["qk_rope_head_dim"],
        value=t["v_head_dim"],
        theta=t["rope_theta"],
        eps=t["rms_norm_eps"],
        dense_layers=t["first_k_dense_replace"],
    )


def from_config(config: dict[str, Any]) -> KimiVl:
    return KimiVl(vision_shape(config), text_shape(config), config["media_placeholder_token_id"])


def load(directory: Path) -> KimiVl:
    """Read a published-layout folder in float32; a missing or unexpected tensor is an error."""
    model = from_config(json.loads((directory / "config.json").read_text()))
    tensors = {}
    for shard in sorted(directory.glob("*.safetensors")):
        tensors.update({name: tensor.float() for name, tensor in load_file(shard).items()})
    model.load_state_dict(tensors, strict=True)
    return model.eval()


@torch.no_grad()
def greedy(model: KimiVl, ids: list[int], image_rows: Tensor | None, steps: int, stop: frozenset[int]) -> list[int]:
    """Continue without a cache: plain, and fast enough for short answers."""
    out: list[int] = []
    for _ in range(steps):
        hidden = model.hidden(torch.tensor([ids + out]), image_rows)
        out.append(int(model.logits(hidden[0, -1]).argmax()))
        if out[-1] in stop:
            break
    return out
