"""The full-size shapes with random weights as GGUF, which llama.cpp reads: its architecture "deepseek2".

What conversion and quantization of a published checkpoint would leave: latent attention in its absorbed form, all
matrices in one format (lm_head too), norms and router in float32. Writes the format directly; knows no engine.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kimi_serve.inputs.config import ModelConfig, TextConfig
from kimi_serve.quantize.writer import write_atomically

ALIGNMENT = 32
BLOCK = 32  # values that share a scale
PIECE = 1 << 17  # blocks drawn at a time
F32 = 0
UINT32, FLOAT32, BOOL, STRING = 4, 6, 7, 8  # types of values
STD = 0.02


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    number: int  # ggml's
    value_bytes: int  # of a block's values; a float16 scale comes before them
    integer_std: float  # of values drawn evenly

    @property
    def bits_a_weight(self) -> float:
        return 8 * (2 + self.value_bytes) / BLOCK


FORMATS = {"int4": Format("Q4_0", 2, 16, 4.61), "int8": Format("Q8_0", 8, 32, 73.9)}


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: Sequence[int]  # fastest axis first
    form: Format | None  # None: float32

    @property
    def nbytes(self) -> int:
        count = math.prod(self.shape)
        return 4 * count if self.form is None else count // BLOCK * (2 + self.form.value_bytes)


def write(model: ModelConfig, form: Format, path: Path) -> None:
    """Write the file where it is not there yet."""
    if not path.exists():
        write_atomically(path, _content(settings(model.text), tensors(model.text, form)))


def settings(text: TextConfig) -> dict[str, object]:
    """Keys as the converter writes them."""
    latent = text.kv_lora_rank + text.qk_rope_head_dim
    own = {
        "vocab_size": text.vocab_size,
        "context_length": 8192,
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": text.rms_norm_eps,
        "attention.kv_lora_rank": text.kv_lora_rank,
        "attention.key_length": latent,
        "attention.value_length": text.kv_lora_rank,
        "attention.key_length_mla": text.qk_head_dim,
        "attention.value_length_mla": text.v_head_dim,
        "rope.dimension_count": text.qk_rope_head_dim,
        "rope.freq_base": float(text.rope_theta),
        "leading_dense_block_count": text.first_k_dense_replace,
        "expert_count": text.n_routed_experts,
        "expert_used_count": text.num_experts_per_tok,
        "expert_shared_count": text.n_shared_experts,
        "expert_feed_forward_length": text.moe_intermediate_size,
        "expert_weights_scale": text.routed_scaling_factor,
        "expert_weights_norm": text.norm_topk_prob,
        "expert_gating_func": 2,  # sigmoid
    }
    return {
        "general.architecture": "deepseek2",
        "general.alignment": ALIGNMENT,
        "tokenizer.ggml.model": "none",
        **{f"deepseek2.{key}": value for key, value in own.items()},
    }


def tensors(text: TextConfig, form: Format) -> list[Tensor]:
    found = [
        Tensor("token_embd.weight", (text.hidden_size, text.vocab_size), form),
        Tensor("output_norm.weight", (text.hidden_size,), None),
        Tensor("output.weight", (text.hidden_size, text.vocab_size), form),
    ]
    for index in range(text.num_hidden_layers):
        layer = f"blk.{index}"
        parts = {**_attention(text), **(_experts(text) if text.is_sparse(index) else _dense(text))}
        for name, shape in parts.items():
            is_float = "norm" in name or name in ("ffn_gate_inp.weight", "exp_probs_b.bias")
            found.append(Tensor(f"{layer}.{name}", shape, None if is_float else form))
    return found


def _attention(text: TextConfig) -> dict[str, Sequence[int]]:
    hidden, heads, rank = text.hidden_size, text.num_attention_heads, text.kv_lora_rank
    return {
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "attn_q.weight": (hidden, heads * text.qk_head_dim),
        "attn_kv_a_mqa.weight": (hidden, rank + text.qk_rope_head_dim),
        "attn_kv_a_norm.weight": (rank,),
        "attn_k_b.weight": (text.qk_nope_head_dim, rank, heads),
        "attn_v_b.weight": (rank, text.v_head_dim, heads),
        "attn_output.weight": (heads * text.v_head_dim, hidden),
    }


def _dense(text: TextConfig) -> dict[str, Sequence[int]]:
    hidden, between = text.hidden_size, text.intermediate_size
    return {
        "ffn_gate.weight": (hidden, between),
        "ffn_up.weight": (hidden, between),
        "ffn_down.weight": (between, hidden),
    }


def _experts(text: TextConfig) -> dict[str, Sequence[int]]:
    hidden, between, count = text.hidden_size, text.moe_intermediate_size, text.n_routed_experts
    shared = between * text.n_shared_experts
    return {
        "ffn_gate_inp.weight": (hidden, count),
        "exp_probs_b.bias": (count,),
        "ffn_gate_exps.weight": (hidden, between, count),
        "ffn_up_exps.weight": (hidden, between, count),
        "ffn_down_exps.weight": (between, hidden, count),
        "ffn_gate_shexp.weight": (hidden, shared),
        "ffn_up_shexp.weight": (hidden, shared),
        "ffn_down_shexp.weight": (shared, hidden),
    }


def _content(values: dict[str, object], stored: Sequence[Tensor]) -> Iterator[bytes]:
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(stored), len(values))
    head += b"".join(_text(key) + _value(value) for key, value in values.items())
    at = 0
    for tensor in stored:
        number = F32 if tensor.form is None else tensor.form.number
        head += _text(tensor.name) + struct.pack("<I", len(tensor.shape))
        head += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack("<IQ", number, at)
        at += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    yield head + bytes(-len(head) % ALIGNMENT)
    for index, tensor in enumerate(stored):
        yield from _drawn(tensor, index)
        yield bytes(-tensor.nbytes % ALIGNMENT)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _value(value: object) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    assert isinstance(value, str)
    return struct.pack("<I", STRING) + _text(value)


def _drawn(tensor: Tensor, seed: int) -> Iterator[bytes]:
    """Norms are one, the router is normal, and blocks have a scale of random sign before random integers."""
    random, count = np.random.Generator(np.random.SFC64(seed)), math.prod(tensor.shape)
    if tensor.form is None:
        values = np.ones(count) if "norm" in tensor.name else random.standard_normal(count) * STD
        yield values.astype(np.float32).tobytes()
        return
    std = 1.0 if tensor.name.startswith("token_embd") else STD
    for start in range(0, count // BLOCK, PIECE):
        size = min(PIECE, count // BLOCK - start)
        blocks = np.empty((size, 2 + tensor.form.value_bytes), np.uint8)
        scales = (random.integers(0, 2, size) * 2 - 1) * (std / tensor.form.integer_std)
        blocks[:, :2] = scales.astype(np.float16)[:, None].view(np.uint8)
        words = random.bit_generator.random_raw(size * tensor.form.value_bytes // 8)
        blocks[:, 2:] = words.view(np.uint8).reshape(size, -1)
        yield blocks.tobytes()
