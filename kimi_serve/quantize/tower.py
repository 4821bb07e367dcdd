"""The vision tower in plain torch, one block in memory at a time. Knows patches and grids; never text.

For calibration and comparison only: model/moonvit.py is what serves.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kimi_serve.inputs.config import ImageConfig, VisionConfig
from kimi_serve.inputs.geometry import Grid
from kimi_serve.inputs.image_processor import ImagePatches
from kimi_serve.quantize.reading import Model

EPS = 1e-5
ROPE_THETA = 10000.0
TOKENS_AT_ONCE = 4096  # through a feed-forward layer: its inner values are wide
ROOT = "vision_tower"


@torch.no_grad()
def image_rows(model: Model, vision: VisionConfig, image: ImageConfig, pictures: Sequence[ImagePatches]) -> Tensor:
    """Return the embeddings of all pictures' tokens in order, (tokens, text hidden)."""
    grids = [picture.grid for picture in pictures]
    x = torch.cat([embed(model, image, picture) for picture in pictures])
    angles = [rope_angles(grid, vision.head_dim) for grid in grids]
    for index in range(vision.num_hidden_layers):
        block = f"{ROOT}.encoder.blocks.{index}"
        x = x + attend(model, block, _norm(model, f"{block}.norm0", x), grids, angles, vision)
        x = x + feed_forward(model, f"{block}.mlp.fc0", f"{block}.mlp.fc1", _norm(model, f"{block}.norm1", x), "tanh")
    x = _norm(model, f"{ROOT}.encoder.final_layernorm", x)
    x = torch.cat([merge(part, grid, vision) for part, grid in zip(_parts(x, grids), grids, strict=True)])
    x = _norm(model, "multi_modal_projector.pre_norm", x).flatten(1)
    return feed_forward(model, "multi_modal_projector.linear_1", "multi_modal_projector.linear_2", x, "none")


def embed(model: Model, image: ImageConfig, picture: ImagePatches) -> Tensor:
    """uint8 patches of one picture -> (patches, hidden), positions added."""
    pixels = torch.from_numpy(picture.patches).float() / 255  # (patches, 3, p, p)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (image.image_mean, image.image_std))
    weight = model.tensor(f"{ROOT}.patch_embed.proj.weight").flatten(1)
    x = F.linear(((pixels - mean) / std).flatten(1), weight, model.tensor(f"{ROOT}.patch_embed.proj.bias"))
    table = model.tensor(f"{ROOT}.patch_embed.pos_emb.weight").permute(2, 0, 1)[None]
    positions = F.interpolate(table, size=(picture.grid.height, picture.grid.width), mode="bicubic")
    return x + positions[0].permute(1, 2, 0).flatten(0, 1)


def rope_angles(grid: Grid, head_dim: int) -> Tensor:
    """Return (patches, 1, head_dim/2): even pairs turn with the column, odd pairs with the row."""
    step = ROPE_THETA ** (-torch.arange(0, head_dim, 4, dtype=torch.float32) / head_dim)
    rows = torch.arange(grid.height).repeat_interleave(grid.width)[:, None] * step
    columns = torch.arange(grid.width).repeat(grid.height)[:, None] * step
    return torch.stack((columns, rows), -1).flatten(1)[:, None]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn adjacent pairs (2i, 2i+1) of the last axis."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def attend(
    model: Model, block: str, x: Tensor, grids: Sequence[Grid], angles: Sequence[Tensor], vision: VisionConfig
) -> Tensor:
    """Attention within each picture."""
    qkv = model.linear(f"{block}.wqkv")(x).view(-1, 3, vision.num_attention_heads, vision.head_dim)
    outs = []
    for part, turn in zip(_parts(qkv, grids), angles, strict=True):
        q, k, v = part.unbind(1)  # (patches, heads, head_dim)
        q, k, v = (each.transpose(0, 1)[None] for each in (rotate(q, turn), rotate(k, turn), v))
        outs.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
    return model.linear(f"{block}.wo")(torch.cat(outs))


def feed_forward(model: Model, up: str, down: str, x: Tensor, approximate: str) -> Tensor:
    first, second = model.linear(up), model.linear(down)
    return torch.cat([second(F.gelu(first(part), approximate=approximate)) for part in x.split(TOKENS_AT_ONCE)])


def merge(x: Tensor, grid: Grid, vision: VisionConfig) -> Tensor:
    """(patches, hidden) of one picture -> (tokens, sub-patches, hidden), sub-patches row by row."""
    down, across = vision.merge_kernel_size
    cells = x.view(grid.height // down, down, grid.width // across, across, -1)
    return cells.permute(0, 2, 1, 3, 4).reshape(-1, down * across, x.shape[-1])


def _parts(x: Tensor, grids: Sequence[Grid]) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = x.split([grid.num_patches for grid in grids])
    return parts


def _norm(model: Model, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], model.tensor(f"{name}.weight"), model.tensor(f"{name}.bias"), EPS)
