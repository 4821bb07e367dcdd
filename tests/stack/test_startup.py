"""What the engine said when it started: whose class it runs, and the cache that `kimi-serve plan` plans."""

import re
from pathlib import Path

import torch

from kimi_serve import cpu
from kimi_serve.launch import footprint
from kimi_serve.launch.sizes import BLOCK, GIB, cache_per_token
from kimi_serve.plan import memory
from tests.stack.served import CONTEXT, Server

SPACE = GIB  # what the server is started with
VALUE_BYTES = torch.float32.itemsize  # its --dtype


def test_vllm_counts_the_planned_tokens_of_cache(server: Server, checkpoint: Path) -> None:
    said = re.search(r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens", server.log)
    assert said is not None
    attention = "latent" if cpu.has_amx(cpu.flags()) else "expanded"
    per_token = cache_per_token(footprint.read(checkpoint), attention) * VALUE_BYTES // 2
    assert int(said[2].replace(",", "")) == CONTEXT
    tokens = int(said[1].replace(",", ""))
    assert tokens == SPACE // (BLOCK * per_token) * BLOCK
    # One block of these stays empty.
    assert memory.requests_in(SPACE, per_token, CONTEXT) == (tokens - BLOCK) // CONTEXT


def test_the_engine_says_whose_class_it_runs(server: Server) -> None:
    assert "Kimi-VL Instruct: reasoning parser" in server.log
