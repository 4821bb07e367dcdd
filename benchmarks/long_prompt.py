"""A long prompt through vLLM beside the plain-torch reference: `python -m benchmarks.long_prompt`.

Logits at twelve positions, drawn anywhere; a second turn that finds the first in the prefix cache. The golden
checkpoint in float32, keys and values expanded: what CPUs without AMX run. The reference needs a quarter of an hour for
100,000 tokens; --keep FILE holds its logits for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_MLA_DISABLE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

import numpy as np
from vllm import LLM

from tests.engine import long_prompt
from tests.engine.driver import generate, long, sampling

CHUNK = 2048  # tokens a step
CACHE_GIB = int(os.environ["VLLM_CPU_KVCACHE_SPACE"])
MORE = 64  # tokens of the second turn
TOLERANCE = 1e-3  # of tests/golden/README.md, for prompts of 6,000 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000, help="at most 131,000")
    parser.add_argument("--keep", type=Path, help="where the reference's logits are, or shall be")
    parser.add_argument("--json", action="store_true", help="one line for machines")
    args = parser.parse_args()
    with long_prompt.golden_checkpoint() as checkpoint:
        expected = reference(checkpoint, args.tokens, args.keep)
        found = run(checkpoint, args.tokens, expected)
    print(json.dumps(found) if args.json else "\n".join(f"{name:32} {value}" for name, value in found.items()))


def reference(checkpoint: Path, tokens: int, keep: Path | None) -> np.ndarray:
    if keep and keep.exists():
        with np.load(keep) as kept:
            logits: np.ndarray = kept["logits"]
            return logits
    logits = long_prompt.reference(checkpoint, tokens)
    if keep:
        np.savez(keep, logits=logits)
    return logits


def run(checkpoint: Path, tokens: int, expected: np.ndarray) -> dict[str, object]:
    llm = LLM(
        str(checkpoint),
        dtype="float32",
        max_model_len=tokens + 2 * MORE,
        max_num_batched_tokens=CHUNK,
        enable_prefix_caching=True,
        enforce_eager=True,
    )
    begun = time.monotonic()
    logits = long(llm, tokens)["logits"]
    first = time.monotonic() - begun
    again = long_prompt.prompt(tokens) + long_prompt.prompt(MORE)
    begun = time.monotonic()
    [output] = generate(llm, [{"prompt_token_ids": again}], sampling(max_tokens=1))
    away = np.abs(logits - expected)
    return {
        "tokens": tokens,
        "largest difference of logits": float(away.max()),
        "same first choice, of 12": int((logits.argmax(-1) == expected.argmax(-1)).sum()),
        f"within {TOLERANCE}": bool(away.max() < TOLERANCE),
        "first turn, s": round(first, 1),
        "second turn, s": round(time.monotonic() - begun, 2),
        "second turn: tokens from cache": output.num_cached_tokens,
        f"tokens in {CACHE_GIB} GiB of cache": tokens_in_cache(llm),
        "peak memory, GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def tokens_in_cache(llm: LLM) -> int:
    config = llm.llm_engine.vllm_config.cache_config
    return int(config.num_gpu_blocks * config.block_size)


if __name__ == "__main__":
    main()
