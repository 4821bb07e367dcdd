"""Checkpoint tensors: the name and shape of every one that a Kimi-VL checkpoint holds. Knows no file and no engine."""

import math

from kimi_serve.inputs.config import ModelConfig, TextConfig, VisionConfig

Shape = tuple[int, ...]


def expected_tensors(model: ModelConfig) -> dict[str, Shape]:
    """Every tensor of an unquantized checkpoint, by name, with its shape."""
    tensors = _tower_tensors(model.vision)
    tensors |= _projector_tensors(model.vision, model.text.hidden_size)
    tensors |= _decoder_tensors(model.text)
    return tensors


def num_parameters(model: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in expected_tensors(model).values())


def _tower_tensors(vision: VisionConfig) -> dict[str, Shape]:
    hidden, mlp, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    root = "vision_tower"
    tensors: dict[str, Shape] = {
        f"{root}.patch_embed.proj.weight": (hidden, 3, patch, patch),
        f"{root}.patch_embed.proj.bias": (hidden,),
        f"{root}.patch_embed.pos_emb.weight": (vision.init_pos_emb_height, vision.init_pos_emb_width, hidden),
        f"{root}.encoder.final_layernorm.weight": (hidden,),
        f"{root}.encoder.final_layernorm.bias": (hidden,),
    }
    for i in range(vision.num_hidden_layers):
        block = f"{root}.encoder.blocks.{i}"
        for name, shape in {
            "norm0": (hidden,),
            "norm1": (hidden,),
            "wqkv": (3 * hidden, hidden),
            "wo": (hidden, hidden),
            "mlp.fc0": (mlp, hidden),
            "mlp.fc1": (hidden, mlp),
        }.items():
            tensors[f"{block}.{name}.weight"] = shape
            tensors[f"{block}.{name}.bias"] = shape[:1]
    return tensors


def _projector_tensors(vision: VisionConfig, text_hidden: int) -> dict[str, Shape]:
    merged = vision.hidden_size * math.prod(vision.merge_kernel_size)
    root = "multi_modal_projector"
    return {
        f"{root}.pre_norm.weight": (vision.hidden_size,),
        f"{root}.pre_norm.bias": (vision.hidden_size,),
        f"{root}.linear_1.weight": (merged, merged),
        f"{root}.linear_1.bias": (merged,),
        f"{root}.linear_2.weight": (text_hidden, merged),
        f"{root}.linear_2.bias": (text_hidden,),
    }


def _decoder_tensors(text: TextConfig) -> dict[str, Shape]:
    tensors: dict[str, Shape] = {
        "language_model.model.embed_tokens.weight": (text.vocab_size, text.hidden_size),
        "language_model.model.norm.weight": (text.hidden_size,),
        "language_model.lm_head.weight": (text.vocab_size, text.hidden_size),
    }
    for i in range(text.num_hidden_layers):
        layer = f"language_model.model.layers.{i}"
        tensors |= _attention_tensors(text, layer)
        if text.is_sparse(i):
            tensors |= _moe_tensors(text, layer)
        else:
            tensors |= _mlp(f"{layer}.mlp", text, text.intermediate_size)
    return tensors


def _attention_tensors(text: TextConfig, layer: str) -> dict[str, Shape]:
    heads, hidden, rank = text.num_attention_heads, text.hidden_size, text.kv_lora_rank
    return {
        f"{layer}.input_layernorm.weight": (hidden,),
        f"{layer}.post_attention_layernorm.weight": (hidden,),
        f"{layer}.self_attn.q_proj.weight": (heads * text.qk_head_dim, hidden),
        f"{layer}.self_attn.kv_a_proj_with_mqa.weight": (rank + text.qk_rope_head_dim, hidden),
        f"{layer}.self_attn.kv_a_layernorm.weight": (rank,),
        f"{layer}.self_attn.kv_b_proj.weight": (heads * (text.qk_nope_head_dim + text.v_head_dim), rank),
        f"{layer}.self_attn.o_proj.weight": (hidden, heads * text.v_head_dim),
    }


def _moe_tensors(text: TextConfig, layer: str) -> dict[str, Shape]:
    tensors: dict[str, Shape] = {f"{layer}.mlp.gate.weight": (text.n_routed_experts, text.hidden_size)}
    if text.topk_method == "noaux_tc":
        tensors[f"{layer}.mlp.gate.e_score_correction_bias"] = (text.n_routed_experts,)
    for expert in range(text.n_routed_experts):
        tensors |= _mlp(f"{layer}.mlp.experts.{expert}", text, text.moe_intermediate_size)
    tensors |= _mlp(f"{layer}.mlp.shared_experts", text, text.moe_intermediate_size * text.n_shared_experts)
    return tensors


def _mlp(prefix: str, text: TextConfig, intermediate: int) -> dict[str, Shape]:
    return {
        f"{prefix}.gate_proj.weight": (intermediate, text.hidden_size),
        f"{prefix}.up_proj.weight": (intermediate, text.hidden_size),
        f"{prefix}.down_proj.weight": (text.hidden_size, intermediate),
    }
