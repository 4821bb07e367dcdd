"""What each GPU holds while it serves, part by part. Knows shapes and vLLM 0.32's steps; never which GPU.

Everything but ALLOWANCE is derived: from the tensors that model/ and vLLM's layers keep alive at the same time, in
bfloat16 and without compilation. The peak is the largest of four moments that never coincide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kimi_serve.inputs import passes
from kimi_serve.inputs.config import ModelConfig, TextConfig, VisionConfig
from kimi_serve.launch import sizes
from kimi_serve.launch.footprint import Footprint

CONTEXT_ROWS = 65_536  # most cached tokens that vLLM's latent prefill expands at a time
POSITION_TABLES = 16_384  # patches whose stretched position tables the tower keeps
# Not derived and not measured here: CUDA's context, libraries, graphs, small tables, fragmentation, and with several
# GPUs their buffers to talk.
ALLOWANCE = 2 * sizes.GIB

Kind = Literal["derived", "allowance"]


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    nbytes: int
    kind: Kind
    why: str


@dataclass(frozen=True, slots=True)
class Service:
    """How the engine is started: each changes what it holds."""

    context: int  # tokens of one request
    sequences: int  # requests of one step at the most
    ranks: int = 1
    step_tokens: int = sizes.GPU_STEP_TOKENS

    def encoder_tokens(self, footprint: Footprint) -> int:
        """Of one pass of the tower: a step's, or the largest image's."""
        return max(self.step_tokens, footprint.max_image_tokens)


def fixed(weights: int, model: ModelConfig, footprint: Footprint, service: Service) -> list[Part]:
    """Everything but the cache of requests; `weights`: bytes on each GPU."""
    text = model.text
    tokens = service.encoder_tokens(footprint)
    peak, moment = max(moments(model, footprint, service))
    return [
        Part("weights", weights, "derived", "as loaded"),
        Part("kv_b_proj again", absorbed(text, service.ranks), "derived", "bfloat16, by head, for decoding on latents"),
        Part("context rows", 2 * rows(service) * _latent(text), "derived", f"{rows(service)} latents read per prefill"),
        Part("image features", 2 * tokens * text.hidden_size, "derived", f"{tokens} tokens kept for coming steps"),
        Part("position tables", 4 * POSITION_TABLES * model.vision.hidden_size, "derived", "the tower's, stretched"),
        Part("activations", peak, "derived", f"at their peak: {moment}"),
        Part("allowance", ALLOWANCE, "allowance", "CUDA context, libraries, graphs, fragmentation"),
    ]


def absorbed(text: TextConfig, ranks: int) -> int:
    """The two transposed halves of kv_b_proj that latent attention keeps beside it."""
    heads = text.num_attention_heads // ranks
    return 2 * text.num_hidden_layers * heads * (text.qk_nope_head_dim + text.v_head_dim) * text.kv_lora_rank


def rows(service: Service) -> int:
    """Cached tokens that a prefill expands at a time."""
    return min(max(8 * service.context, 4 * service.sequences * sizes.BLOCK), CONTEXT_ROWS)


def moments(model: ModelConfig, footprint: Footprint, service: Service) -> Sequence[tuple[int, str]]:
    """Bytes that are alive at each peak of a step, and its name."""
    text, ranks = model.text, service.ranks
    step = service.step_tokens * stream_bytes(text)
    merge = math.prod(model.vision.merge_kernel_size)
    patches, largest = merge * service.encoder_tokens(footprint), merge * footprint.max_image_tokens
    return (
        (tower_bytes(model.vision, patches, largest, ranks), f"the tower on {patches} patches"),
        (step + service.step_tokens * expert_bytes(text, ranks), f"the experts on {service.step_tokens} tokens"),
        (
            step + service.step_tokens * query_bytes(text, ranks) + rows(service) * expanded_bytes(text, ranks),
            f"attention to {rows(service)} cached tokens",
        ),
        (service.sequences * text.vocab_size * SAMPLED_BYTES, f"sampling for {service.sequences} requests"),
    )


# Logits in bfloat16 and float32, probabilities and noise in float32.
SAMPLED_BYTES = 2 + 4 + 4 + 4


def tower_bytes(vision: VisionConfig, patches: int, largest: int, ranks: int) -> int:
    """Of so many patches in the tower, of which a pass takes its most, or one image's: `largest`.

    Pixels and result are there for all, the rest for one pass: its pixels side by side, its turns, what its blocks
    change, and the larger of a block's two halves or the embedding. Attention peaks while keys turn: norm, q, k and v,
    the turned q, and the keys in float32 before and after. The feed-forward takes some patches at a time and peaks when
    it returns: norm, output, and its inner width before and after GELU. The embedding holds float32: four times the
    pixels and the projection, then that and its rounding.
    """
    at_once = min(patches, max(passes.PATCHES, largest))
    fed = min(at_once, passes.FEED_PATCHES)
    hidden, share, mlp = vision.hidden_size, vision.hidden_size // ranks, vision.intermediate_size // ranks
    pixels = 3 * vision.patch_size**2
    stream = 2 * hidden
    attention = at_once * (stream + 2 * hidden + 2 * 3 * share + 2 * share + 2 * 4 * share)
    feed_forward = at_once * stream + fed * (2 * 2 * hidden + 2 * 2 * mlp)
    embedding = at_once * max(4 * pixels + 4 * hidden, 4 * hidden + 2 * hidden)
    constant = patches * (pixels + 2 * hidden) + at_once * (pixels + 4 * vision.head_dim)
    return constant + max(attention, feed_forward, embedding)


def stream_bytes(text: TextConfig) -> int:
    """Of one token of a step all along: embeddings, hidden state, residual, and what a norm made of it."""
    return 2 * 4 * text.hidden_size


def expert_bytes(text: TextConfig, ranks: int) -> int:
    """Of one token in vLLM's fused experts: two workspaces, each as wide as the widest thing in it, the routed sum,
    the scores, and the shared experts beside them."""
    hidden, inner = text.hidden_size, text.moe_intermediate_size // ranks
    workspaces = text.num_experts_per_tok * (max(inner, hidden) + max(2 * inner, hidden))
    shared = 3 * text.n_shared_experts * inner + hidden
    return 2 * (workspaces + hidden + shared) + 4 * text.n_routed_experts


def query_bytes(text: TextConfig, ranks: int) -> int:
    """Of one token of a step in attention: its query, key and value in full, its latent, and what comes out."""
    heads = text.num_attention_heads // ranks
    per_head = 2 * text.qk_head_dim + (text.qk_nope_head_dim + text.v_head_dim) + text.v_head_dim
    return 2 * (heads * per_head + _latent(text))


def expanded_bytes(text: TextConfig, ranks: int) -> int:
    """Of one cached token that a prefill expands: what kv_b_proj gives, and the whole key."""
    heads = text.num_attention_heads // ranks
    return 2 * heads * (text.qk_nope_head_dim + text.v_head_dim + text.qk_head_dim)


def _latent(text: TextConfig) -> int:
    return text.kv_lora_rank + text.qk_rope_head_dim


def cache(per_token: int, context: int, requests: int = 1) -> int:
    """Bytes of the cache of so many requests, each in whole blocks. Latents are on every GPU: none is shared."""
    return per_token * -(-context // sizes.BLOCK) * sizes.BLOCK * requests


def requests_in(cache_bytes: int, per_token: int, context: int) -> int:
    """The most requests of a context that a cache holds, less the block that vLLM keeps empty."""
    return max(0, cache_bytes - per_token * sizes.BLOCK) // cache(per_token, context)
