"""How many tokens a CPU machine holds: of one request, of one step, of the cache. Knows arithmetic; spells no flag."""

from dataclasses import dataclass
from typing import Literal

from kimi_serve.errors import LaunchError
from kimi_serve.launch.footprint import Footprint

GIB = 1 << 30
MIB = 1 << 20

# latent: MLA on AMX kernels. expanded: keys and values of every head, on any CPU. reference: MLA without kernels, where
# vLLM forces chunked prefill and prefix caching off, so one step takes a whole prompt.
Attention = Literal["latent", "expanded", "reference"]

# Without AMX a longer prompt takes many minutes to read; a person who wants it says --max-model-len.
LONGEST = {"latent": 1 << 30, "expanded": 32_768, "reference": 16_384}
# Below this a machine cannot hold one picture and an answer: better said before the engine starts.
SHORTEST = 2_048
BLOCK = 128  # tokens: the largest cache block of vLLM's backends for this model
FULL_LENGTH_REQUESTS = 4  # that the cache should hold at once
GPU_STEP_TOKENS = 8_192  # of one engine step on a GPU: the largest image and a prompt
ENGINE_OVERHEAD = 3 * GIB  # three Python processes with torch, and the activations of a step


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person set, None where they did not; value_bytes is 2 for bfloat16."""

    model_len: int | None = None
    sequences: int | None = None
    cache_is_set: bool = False
    value_bytes: int = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    model_len: int  # tokens of one request
    step_tokens: int  # tokens of one engine step
    cache: int  # bytes


def fit(footprint: Footprint, attention: Attention, available: int, wanted: Wanted) -> Sizes:
    """Sizes for `available` bytes of memory. What a person set is not judged: vLLM does that."""
    per_token = cache_per_token(footprint, attention) * wanted.value_bytes // 2
    needed = without_cache(footprint, wanted.value_bytes)
    spare = int((available - needed) * 0.8) // MIB * MIB
    longest = min(footprint.max_positions, LONGEST[attention])
    affordable = longest if wanted.cache_is_set else min(longest, (spare // per_token // BLOCK - 1) * BLOCK)
    if affordable < SHORTEST:
        raise LaunchError(
            f"memory: {available / GIB:.1f} GiB are free, the model needs {needed / GIB:.1f} GiB and "
            f"{SHORTEST * per_token / 0.8 / GIB:.2f} GiB of cache; free memory, or set --kv-cache-memory-bytes"
        )
    model_len = wanted.model_len or affordable
    one = whole_blocks(model_len) * per_token
    several = min(FULL_LENGTH_REQUESTS, wanted.sequences or FULL_LENGTH_REQUESTS) * one
    cache = -(-max(one, min(several, available // 8), 256 * MIB) // MIB) * MIB
    return Sizes(model_len, step_tokens(footprint, attention, model_len), max(MIB, min(cache, spare)))


def whole_blocks(tokens: int) -> int:
    """Tokens that a cache must have room for to hold so many: vLLM keeps one block empty, and rounds up the others."""
    return (-(-tokens // BLOCK) + 1) * BLOCK


def without_cache(footprint: Footprint, value_bytes: int) -> int:
    """Bytes of weights, with a tenth for copies that kernels make of them, and of the engine itself."""
    return int(footprint.weights * value_bytes / 2 * 1.1) + ENGINE_OVERHEAD


def image_cache(available: int) -> float:
    """GiB of processed images that an engine keeps: 450,000 tokens each. vLLM's 4 are a quarter of a small machine."""
    return min(4.0, max(0.25, available // (4 * GIB) / 4))


def cache_per_token(footprint: Footprint, attention: Attention) -> int:
    """Bytes at two bytes a value."""
    return footprint.expanded_per_token if attention == "expanded" else footprint.latent_per_token


def step_tokens(footprint: Footprint, attention: Attention, model_len: int) -> int:
    """With chunked prefill, the largest image fits one chunk; without, a step holds the longest prompt."""
    if attention == "reference":
        return max(model_len, 2_048)
    return min(8_192, max(2_048, -(-footprint.max_image_tokens // 256) * 256))
