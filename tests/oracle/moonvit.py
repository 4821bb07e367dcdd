"""MoonViT in plain torch. Knows patches and grids; knows no vLLM, no checkpoint file, no text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class VisionShape:
    hidden: int
    heads: int
    layers: int
    intermediate: int
    patch: int = 14
    table_height: int = 64
    table_width: int = 64


class PositionTable(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape.table_height, shape.table_width, shape.hidden) * 0.02)

    def forward(self, height: int, width: int) -> Tensor:
        table = self.weight.permute(2, 0, 1)[None]
        resized = F.interpolate(table, size=(height, width), mode="bicubic")
        return resized[0].permute(1, 2, 0).flatten(0, 1)  # (height*width, hidden)


class PatchEmbed(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.hidden, shape.patch, shape.patch)
        self.pos_emb = PositionTable(shape)

    def forward(self, pixels: Tensor, height: int, width: int) -> Tensor:
        weight = self.proj.weight.flatten(1)  # (hidden, 3*14*14)
        x = F.linear(pixels.flatten(2), weight, self.proj.bias)  # (images, patches, hidden)
        return x + self.pos_emb(height, width)


@lru_cache(maxsize=512)
def rope_table(height: int, width: int, head_dim: int) -> Tensor:
    """Angles per patch and complex pair: even pairs turn with the column, odd pairs with the row."""
    j = torch.arange(0, head_dim // 4, dtype=torch.float32)
    inverse = 10000.0 ** (-4.0 * j / head_dim)
    rows = torch.arange(height).repeat_interleave(width)[:, None] * inverse
    columns = torch.arange(width).repeat(height)[:, None] * inverse
    angles = torch.stack((columns, rows), -1).flatten(1)  # (patches, head_dim/2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent pairs (2i, 2i+1) of the last dimension."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class VisionMlp(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.fc0 = nn.Linear(shape.hidden, shape.intermediate)
        self.fc1 = nn.Linear(shape.intermediate, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc1(F.gelu(self.fc0(x), approximate="tanh"))
        return y


class Block(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm0 = nn.LayerNorm(shape.hidden, eps=1e-5)
        self.norm1 = nn.LayerNorm(shape.hidden, eps=1e-5)
        self.wqkv = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.wo = nn.Linear(shape.hidden, shape.hidden)
        self.mlp = VisionMlp(shape)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        x = x + self.attend(self.norm0(x), rope)
        y: Tensor = x + self.mlp(self.norm1(x))
        return y

    def attend(self, x: Tensor, rope: Tensor) -> Tensor:
        images, patches, hidden = x.shape
        qkv = self.wqkv(x).view(images, patches, 3, self.heads, hidden // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (images, heads, patches, head_dim)
        q, k = rotate(q, rope[0], rope[1]), rotate(k, rope[0], rope[1])
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.wo(y.transpose(1, 2).flatten(2))
        return out


class Encoder(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.final_layernorm = nn.LayerNorm(shape.hidden, eps=1e-5)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, rope)
        y: Tensor = self.final_layernorm(x)
        return y


class VisionTower(nn.Module):
    """Images of one grid at a time, so that the batch needs no mask: attention never crosses images."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.head_dim = shape.hidden // shape.heads
        self.patch_embed = PatchEmbed(shape)
        self.encoder = Encoder(shape)

    def forward(self, pixels: Tensor, height: int, width: int) -> Tensor:
        x = self.patch_embed(pixels, height, width)  # pixels: (images, patches, 3, 14, 14), normalised
        x = self.encoder(x, rope_table(height, width, self.head_dim))
        return merge(x, height, width)  # (images, tokens, 4, hidden)


def merge(x: Tensor, height: int, width: int) -> Tensor:
    """Group every 2x2 patches in the order (0,0), (0,1), (1,0), (1,1)."""
    images, _, hidden = x.shape
    x = x.view(images, height // 2, 2, width // 2, 2, hidden)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(images, height * width // 4, 4, hidden)


class Projector(nn.Module):
    def __init__(self, hidden: int, text_hidden: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(hidden, eps=1e-5)
        self.linear_1 = nn.Linear(4 * hidden, 4 * hidden)
        self.linear_2 = nn.Linear(4 * hidden, text_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_norm(x).flatten(-2)  # (images, tokens, 4*hidden)
        y: Tensor = self.linear_2(F.gelu(self.linear_1(x)))
        return y
