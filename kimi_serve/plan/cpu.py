"""How this machine's CPU would serve it: what `kimi-serve engine` would choose. Knows the launcher; starts nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kimi_serve.errors import LaunchError
from kimi_serve.launch import defaults, flags, sizes
from kimi_serve.launch.defaults import Wish
from kimi_serve.launch.footprint import Footprint
from kimi_serve.launch.machine import Machine
from kimi_serve.plan import memory
from kimi_serve.plan.options import Options


@dataclass(frozen=True, slots=True)
class CpuPlan:
    attention: sizes.Attention
    value_bytes: int  # 2: bfloat16, 4: float32
    context: int  # tokens
    step_tokens: int
    per_token: int  # bytes of cache
    cache: int  # bytes
    other: int  # bytes: weights and the engine
    available: int

    @property
    def needed(self) -> int:
        return self.other + self.cache

    @property
    def requests(self) -> int:
        """The most at once, each of the full context."""
        return memory.requests_in(self.cache, self.per_token, self.context)

    @property
    def fits(self) -> bool:
        return self.needed <= self.available and self.requests > 0


@dataclass(frozen=True, slots=True)
class NoPlan:
    why: str


def plan(options: Options, footprint: Footprint, machine: Machine, environ: Mapping[str, str]) -> CpuPlan | NoPlan:
    machine = replace(machine, engine="cpu")
    asked = [] if options.context is None else ["--max-model-len", str(options.context)]
    asked += [] if options.sequences is None else ["--max-num-seqs", str(options.sequences)]
    wish = Wish(str(options.model or ""), tuple(asked), environ)
    try:
        chosen = flags.given(defaults.plan(wish, machine, footprint, Path("vllm")).argv)
        return _read(chosen, footprint, machine, environ)
    except LaunchError as error:
        return NoPlan(str(error))


def _read(chosen: dict[str, str], footprint: Footprint, machine: Machine, environ: Mapping[str, str]) -> CpuPlan:
    attention = defaults.attention(environ, machine)
    value_bytes = 4 if chosen.get("--dtype") == "float32" else 2
    cache = flags.number(chosen, "--kv-cache-memory-bytes")
    if cache is None:  # left to vLLM, whose own variable sets it
        cache = _space(environ["VLLM_CPU_KVCACHE_SPACE"])
    return CpuPlan(
        attention=attention,
        value_bytes=value_bytes,
        context=flags.number(chosen, "--max-model-len") or footprint.max_positions,
        step_tokens=flags.number(chosen, "--max-num-batched-tokens") or 0,
        per_token=sizes.cache_per_token(footprint, attention) * value_bytes // 2,
        cache=cache,
        other=sizes.without_cache(footprint, value_bytes),
        available=machine.memory_available,
    )


def _space(gib: str) -> int:
    if not gib.isdigit() or gib == "0":
        raise LaunchError(f"VLLM_CPU_KVCACHE_SPACE: {gib!r} is not supported; expected whole GiB, above 0")
    return int(gib) * sizes.GIB
