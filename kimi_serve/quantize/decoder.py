"""The decoder in plain torch, one layer in memory at a time. Knows token positions; never a pixel or a file.

For calibration and comparison only: model/decoder.py is what serves.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kimi_serve.inputs.config import TextConfig
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.tower import TOKENS_AT_ONCE, rotate

KV_NORM_EPS = 1e-6  # the published code builds this norm without the configuration's eps
ROOT = "language_model.model"


@torch.no_grad()
def embed(model: Model, ids: Tensor) -> Tensor:
    """Rows of the embedding, read one by one: the table is large and a prompt is short."""
    unique, where = ids.unique(return_inverse=True)
    name = f"{ROOT}.embed_tokens.weight"
    return torch.cat([model.rows(name, token, token + 1) for token in unique.tolist()])[where]


@torch.no_grad()
def run(model: Model, text: TextConfig, x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Embeddings of sequences one after the other, (tokens, hidden) -> what lm_head is given."""
    for index in range(text.num_hidden_layers):
        layer = f"{ROOT}.layers.{index}"
        x = x + attend(model, layer, _norm(model, f"{layer}.input_layernorm", x, text.rms_norm_eps), text, lengths)
        inner = _norm(model, f"{layer}.post_attention_layernorm", x, text.rms_norm_eps)
        x = x + (experts if text.is_sparse(index) else dense)(model, f"{layer}.mlp", inner, text)
    return _norm(model, f"{ROOT}.norm", x, text.rms_norm_eps)


def attend(model: Model, layer: str, x: Tensor, text: TextConfig, lengths: Sequence[int]) -> Tensor:
    """Latent attention with expanded keys and values."""
    root, heads, rope = f"{layer}.self_attn", text.num_attention_heads, text.qk_rope_head_dim
    q = model.linear(f"{root}.q_proj")(x).view(-1, heads, text.qk_head_dim)
    latent, k_rope = model.linear(f"{root}.kv_a_proj_with_mqa")(x).split((text.kv_lora_rank, rope), -1)
    latent = _norm(model, f"{root}.kv_a_layernorm", latent, KV_NORM_EPS)
    kv = model.linear(f"{root}.kv_b_proj")(latent).view(-1, heads, text.qk_nope_head_dim + text.v_head_dim)
    parts = zip(q.split(list(lengths)), k_rope.split(list(lengths)), kv.split(list(lengths)), strict=True)
    outs = [_attend_one(q_part, k_part, kv_part, text) for q_part, k_part, kv_part in parts]
    return model.linear(f"{root}.o_proj")(torch.cat(outs))


def _attend_one(q: Tensor, k_rope: Tensor, kv: Tensor, text: TextConfig) -> Tensor:
    """One sequence: q (tokens, heads, ..), k_rope (tokens, rope), kv (tokens, heads, ..) -> (tokens, heads * v)."""
    angles = _angles(len(q), text)
    q_nope, q_rope = q.split((text.qk_nope_head_dim, text.qk_rope_head_dim), -1)
    k_nope, v = kv.split((text.qk_nope_head_dim, text.v_head_dim), -1)
    turned = rotate(k_rope[:, None], angles).expand(-1, text.num_attention_heads, -1)
    query, key = torch.cat((q_nope, rotate(q_rope, angles)), -1), torch.cat((k_nope, turned), -1)
    value = F.pad(v, (0, text.qk_head_dim - text.v_head_dim))  # equal widths take torch's fused kernel
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True)[0]  # (heads, tokens, qk head dim)
    return out[..., : text.v_head_dim].transpose(0, 1).flatten(1)


def dense(model: Model, root: str, x: Tensor, text: TextConfig) -> Tensor:
    return feed_forward(model, root, x)


def experts(model: Model, root: str, x: Tensor, text: TextConfig) -> Tensor:
    """The chosen experts' weighted sum, and the shared experts."""
    ids, weights = route(model, f"{root}.gate", x, text)
    out = feed_forward(model, f"{root}.shared_experts", x)
    for expert in range(text.n_routed_experts):
        tokens, slot = (ids == expert).nonzero(as_tuple=True)
        if len(tokens):
            answer = feed_forward(model, f"{root}.experts.{expert}", x[tokens])
            out.index_add_(0, tokens, answer * weights[tokens, slot, None])
    return out


def route(model: Model, gate: str, x: Tensor, text: TextConfig) -> tuple[Tensor, Tensor]:
    """Return ids and weights, both (tokens, top k). The correction bias steers the choice and not the weight."""
    scores = F.linear(x, model.tensor(f"{gate}.weight")).sigmoid()
    chosen_by = scores + model.tensor(f"{gate}.e_score_correction_bias") if text.topk_method == "noaux_tc" else scores
    ids = chosen_by.topk(text.num_experts_per_tok, -1).indices
    weights = scores.gather(-1, ids)
    if text.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * text.routed_scaling_factor


def feed_forward(model: Model, root: str, x: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x))."""
    gate, up, down = (model.linear(f"{root}.{part}_proj") for part in ("gate", "up", "down"))
    return torch.cat([down(F.silu(gate(part)) * up(part)) for part in x.split(TOKENS_AT_ONCE)])


def _angles(length: int, text: TextConfig) -> Tensor:
    rope = text.qk_rope_head_dim
    step = text.rope_theta ** (-torch.arange(0, rope, 2, dtype=torch.float32) / rope)
    return torch.arange(length, dtype=torch.float32)[:, None, None] * step


def _norm(model: Model, name: str, x: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], model.tensor(f"{name}.weight"), eps)
