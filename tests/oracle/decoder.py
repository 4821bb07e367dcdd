"""The MLA and MoE decoder in plain torch. Knows embeddings and token positions; knows no pixel and no file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracle.moonvit import rotate


@dataclass(frozen=True, slots=True)
class TextShape:
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    experts: int
    top_k: int
    moe_intermediate: int
    shared_experts: int
    scaling: float
    kv_rank: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128
    theta: float = 800000.0
    eps: float = 1e-5
    dense_layers: int = 1


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@lru_cache(maxsize=64)
def rope_table(length: int, size: int, theta: float) -> Tensor:
    inverse = theta ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inverse
    return torch.stack((angles.cos(), angles.sin()))  # (2, length, size/2)


class Attention(nn.Module):
    """Multi-head latent attention: keys and values come from one 512-wide latent, plus a shared rope key."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * (shape.nope + shape.rope), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(shape.hidden, shape.kv_rank + shape.rope, bias=False)
        self.kv_a_layernorm = RmsNorm(shape.kv_rank, 1e-6)  # upstream never passes its eps here
        self.kv_b_proj = nn.Linear(shape.kv_rank, shape.heads * (shape.nope + shape.value), bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.value, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        s = self.shape
        batch, length, _ = x.shape
        cos, sin = rope_table(length, s.rope, s.theta)
        q = self.q_proj(x).view(batch, length, s.heads, s.nope + s.rope).transpose(1, 2)
        q_nope, q_rope = q.split((s.nope, s.rope), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((s.kv_rank, s.rope), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, length, s.heads, s.nope + s.value)
        k_nope, v = kv.transpose(1, 2).split((s.nope, s.value), -1)
        k_rope = rotate(k_rope, cos, sin)[:, None].expand(-1, s.heads, -1, -1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), -1)
        k = torch.cat((k_nope, k_rope), -1)
        v = F.pad(v, (0, s.nope + s.rope - s.value))  # equal widths take torch's fused kernel
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)[..., : s.value]
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Gate(nn.Module):
    """Sigmoid scores; the correction bias decides who is chosen and never how much they weigh."""

    e_score_correction_bias: Tensor

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.randn(shape.experts, shape.hidden) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        ids = (scores + self.e_score_correction_bias).topk(self.shape.top_k, -1).indices
        weights = scores.gather(-1, ids)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * self.shape.scaling  # both (tokens, top_k)


class Moe(nn.Module):
    """Every expert sees every token in one product, weighted by zero where not chosen: fast when experts are tiny."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.gate = Gate(shape)
        self.experts = nn.ModuleList(Mlp(shape.hidden, shape.moe_intermediate) for _ in range(shape.experts))
        self.shared_experts = Mlp(shape.hidden, shape.moe_intermediate * shape.shared_experts)
        self.last_ids: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        ids, weights = self.gate(flat)
        self.last_ids = ids
        dense = torch.zeros(len(flat), len(self.experts), dtype=flat.dtype)
        dense = dense.scatter(1, ids, weights.to(flat.dtype))  # (tokens, experts)
        gate = torch.cat([e.gate_proj.weight for e in self.experts])  # (experts*intermediate, hidden)
        up = torch.cat([e.up_proj.weight for e in self.experts])
        down = torch.cat([e.down_proj.weight for e in self.experts], 1)
        inner = F.silu(F.linear(flat, gate)) * F.linear(flat, up)
        inner = (inner.view(len(flat), len(self.experts), -1) * dense[..., None]).flatten(1)
        y: Tensor = F.linear(inner, down) + self.shared_experts(flat)
        return y.view_as(x)


class Layer(nn.Module):
    def __init__(self, shape: TextShape, index: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape)
        dense = index < shape.dense_layers
        self.mlp = Mlp(shape.hidden, shape.intermediate) if dense else Moe(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class Decoder(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.layers))
        self.norm = RmsNorm(shape.hidden, shape.eps)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.norm(x)
        return y


class LanguageModel(nn.Module):
    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.model = Decoder(shape)
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
