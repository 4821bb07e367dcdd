"""A long prompt through vLLM beside the plain-torch reference: `python -m benchmarks.long_prompt`.

Logits at twelve positions, drawn anywhere; a second turn, where the context has room for one, that finds the first in
the prefix cache. The golden checkpoint in float32, keys and values expanded: what CPUs without AMX run. The reference
needs a quarter of an hour for 100,000 tokens; --keep FILE holds its logits, of every length, for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tests.engine import long_prompt

if TYPE_CHECKING:
    from vllm import LLM

CACHE_GIB = 4
ENVIRON = {
    "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_MLA_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
CONTEXT = 131_072  # tokens, the answer's among them
CHUNK = 2048  # tokens a step
MORE = 64  # tokens of the second turn
TOLERANCE = 1e-3  # of tests/golden/README.md, for prompts of 6,000 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    most, room = CONTEXT - 1, CONTEXT - 1 - MORE
    told = f"{long_prompt.WATCHED} to {most}; a second turn up to {room}"
    parser.add_argument("--tokens", type=length, default=100_000, help=told)
    parser.add_argument("--keep", type=Path, help="where the reference's logits are, or shall be")
    parser.add_argument("--json", action="store_true", help="one line for machines")
    args = parser.parse_args()
    with long_prompt.golden_checkpoint() as checkpoint:
        expected = reference(checkpoint, args.tokens, args.keep)
        found = run(checkpoint, args.tokens, expected)
    print(json.dumps(found) if args.json else "\n".join(f"{name:32} {value}" for name, value in found.items()))


def length(said: str) -> int:
    """--tokens, where one more token has room."""
    least, most = long_prompt.WATCHED, CONTEXT - 1
    if not said.isdecimal() or not least <= int(said) <= most:
        raise argparse.ArgumentTypeError(f"{said} is not supported; expected {least} to {most}")
    return int(said)


def reference(checkpoint: Path, tokens: int, keep: Path | None) -> np.ndarray:
    """Logits (WATCHED, vocabulary); kept under the number of tokens, since other lengths are other prompts."""
    kept: dict[str, np.ndarray] = {}
    if keep and keep.exists():
        with np.load(keep) as file:
            kept = dict(file)
    if str(tokens) not in kept:
        kept[str(tokens)] = long_prompt.reference(checkpoint, tokens)
        if keep:
            with keep.open("wb") as file:
                np.savez(file, **kept)
    return kept[str(tokens)]


def run(checkpoint: Path, tokens: int, expected: np.ndarray) -> dict[str, object]:
    os.environ |= ENVIRON  # before vLLM is imported
    from vllm import LLM

    from tests.engine.driver import long

    llm = LLM(
        str(checkpoint),
        dtype="float32",
        max_model_len=min(CONTEXT, tokens + MORE + 1),
        max_num_batched_tokens=CHUNK,
        enable_prefix_caching=True,
        enforce_eager=True,
    )
    begun = time.monotonic()
    logits = long(llm, tokens)["logits"]
    first = time.monotonic() - begun
    away = np.abs(logits - expected)
    return {
        "tokens": tokens,
        "largest difference of logits": float(away.max()),
        "same first choice, of 12": int((logits.argmax(-1) == expected.argmax(-1)).sum()),
        f"within {TOLERANCE}": bool(away.max() < TOLERANCE),
        "first turn, s": round(first, 1),
        **second_turn(llm, tokens),
        f"tokens in {CACHE_GIB} GiB of cache": tokens_in_cache(llm),
        "peak memory, GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def second_turn(llm: LLM, tokens: int) -> dict[str, object]:
    """Seconds, and tokens from the cache; nothing where the context has no room for it."""
    if tokens + MORE + 1 > CONTEXT:
        return {}
    from tests.engine.driver import generate, sampling

    again = long_prompt.prompt(tokens) + long_prompt.prompt(MORE)
    begun = time.monotonic()
    [output] = generate(llm, [{"prompt_token_ids": again}], sampling(max_tokens=1))
    return {
        "second turn, s": round(time.monotonic() - begun, 2),
        "second turn: tokens from cache": output.num_cached_tokens,
    }


def tokens_in_cache(llm: LLM) -> int:
    config = llm.llm_engine.vllm_config.cache_config
    return int(config.num_gpu_blocks * config.block_size)


if __name__ == "__main__":
    main()
