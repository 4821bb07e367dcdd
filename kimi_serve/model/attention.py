"""Multi-head latent attention on vLLM's paged caches. Knows one layer; never sees weights' file names.

Two ways to run the same weights. `LatentAttention` caches the 512+64 latent values a token (31,104 bytes over the
published 27 layers) through vLLM's MLA backends. `ExpandedAttention` caches whole keys and values: larger, but it runs
on every backend, and on CPUs without AMX it is the only one with chunked prefill and prefix caching
(VLLM_MLA_DISABLE=1 chooses it).
"""

import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.layers.mla import MLAModules, MultiHeadLatentAttentionWrapper
from vllm.model_executor.layers.rotary_embedding import get_rope

from kimi_serve.inputs.config import TextConfig
from kimi_serve.model.norm import norm

# The published code builds this norm without its eps argument, so it alone runs with the class default.
KV_NORM_EPS = 1e-6


class Rotation(nn.Module):
    """Rotary embedding of (tokens, heads, dim) tensors.

    vLLM's CPU kernel takes heads * dim as the last axis; given three axes it silently turns the wrong values (0.32.0),
    so heads are folded before the call and unfolded after it. Dimensions are stored as adjacent pairs: GPT-J style.
    """

    def __init__(self, text: TextConfig) -> None:
        super().__init__()
        self.rope = get_rope(
            text.qk_rope_head_dim,
            max_position=text.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
            is_neox_style=False,
        )

    def forward(self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat_q, flat_k = self.rope(positions, q.flatten(1).contiguous(), k.flatten(1).contiguous())
        return flat_q.view(q.shape), flat_k.view(k.shape)


class LatentProjections(nn.Module):
    """The weights both ways share, under the checkpoint's names."""

    def __init__(self, text: TextConfig, vllm_config: VllmConfig, prefix: str, reduce_results: bool) -> None:
        super().__init__()
        quant = vllm_config.quant_config
        heads = text.num_attention_heads
        self.q_proj = ColumnParallelLinear(
            text.hidden_size, heads * text.qk_head_dim, bias=False, quant_config=quant, prefix=f"{prefix}.q_proj"
        )
        self.kv_a_proj_with_mqa = ReplicatedLinear(
            text.hidden_size,
            text.kv_lora_rank + text.qk_rope_head_dim,
            bias=False,
            quant_config=quant,
            prefix=f"{prefix}.kv_a_proj_with_mqa",
        )
        self.kv_a_layernorm = norm(text.kv_lora_rank, KV_NORM_EPS, quant)
        self.kv_b_proj = ColumnParallelLinear(
            text.kv_lora_rank,
            heads * (text.qk_nope_head_dim + text.v_head_dim),
            bias=False,
            quant_config=quant,
            prefix=f"{prefix}.kv_b_proj",
        )
        self.o_proj = RowParallelLinear(
            heads * text.v_head_dim,
            text.hidden_size,
            bias=False,
            quant_config=quant,
            reduce_results=reduce_results,
            prefix=f"{prefix}.o_proj",
        )
        self.rotary_emb = Rotation(text)
        self.local_heads = self.q_proj.output_size_per_partition // text.qk_head_dim


class LatentAttention(LatentProjections):
    """Caches latents; vLLM's MLA layer absorbs kv_b_proj for decoding."""

    def __init__(self, text: TextConfig, vllm_config: VllmConfig, prefix: str, reduce_results: bool = True) -> None:
        super().__init__(text, vllm_config, prefix, reduce_results)
        modules = MLAModules(
            kv_a_layernorm=self.kv_a_layernorm,
            kv_b_proj=self.kv_b_proj,
            rotary_emb=self.rotary_emb,
            o_proj=self.o_proj,
            fused_qkv_a_proj=None,
            kv_a_proj_with_mqa=self.kv_a_proj_with_mqa,
            q_a_layernorm=None,
            q_b_proj=None,
            q_proj=self.q_proj,
            indexer=None,
            is_sparse=False,
            topk_indices_buffer=None,
        )
        self.mla_attn = MultiHeadLatentAttentionWrapper(
            text.hidden_size,
            self.local_heads,
            text.qk_head_dim**-0.5,
            text.qk_nope_head_dim,
            text.qk_rope_head_dim,
            text.v_head_dim,
            None,  # q_lora_rank
            text.kv_lora_rank,
            modules,
            vllm_config.cache_config,
            vllm_config.quant_config,
            prefix,
        )

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.mla_attn(positions, x)  # (tokens, hidden)


class ExpandedAttention(LatentProjections):
    """Caches keys and values of every head."""

    def __init__(self, text: TextConfig, vllm_config: VllmConfig, prefix: str, reduce_results: bool = True) -> None:
        super().__init__(text, vllm_config, prefix, reduce_results)
        self.text = text
        self.attn = Attention(
            self.local_heads,
            text.qk_head_dim,
            text.qk_head_dim**-0.5,
            num_kv_heads=self.local_heads,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.attn(*self.inputs(positions, x)))

    def inputs(self, positions: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x (tokens, hidden) -> queries, keys and values, each (tokens, heads * qk_head_dim)."""
        text, heads = self.text, self.local_heads
        q, _ = self.q_proj(x)
        q = q.view(-1, heads, text.qk_head_dim)
        latent, _ = self.kv_a_proj_with_mqa(x)
        compressed, k_rope = latent.split([text.kv_lora_rank, text.qk_rope_head_dim], dim=-1)
        kv, _ = self.kv_b_proj(self.kv_a_layernorm(compressed.contiguous()))
        k_nope, v = kv.view(-1, heads, text.qk_nope_head_dim + text.v_head_dim).split(
            [text.qk_nope_head_dim, text.v_head_dim], dim=-1
        )
        q_nope, q_rope = q.split([text.qk_nope_head_dim, text.qk_rope_head_dim], dim=-1)
        q_rope, k_rope = self.rotary_emb(positions, q_rope, k_rope.unsqueeze(1))
        q = torch.cat([q_nope, q_rope], dim=-1)  # (tokens, heads, qk_head_dim)
        k = torch.cat([k_nope, k_rope.expand(-1, heads, -1)], dim=-1)
        v = F.pad(v, (0, text.qk_head_dim - text.v_head_dim))  # paged caches hold keys and values of one width
        return q.flatten(1), k.flatten(1), v.flatten(1)

    def output(self, heads: torch.Tensor) -> torch.Tensor:
        """(tokens, heads * qk_head_dim), padded as the values are -> (tokens, hidden)."""
        out = heads.view(-1, self.local_heads, self.text.qk_head_dim)[..., : self.text.v_head_dim]
        out, _ = self.o_proj(out.flatten(1))
        return out
