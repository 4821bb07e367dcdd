"""How `vllm serve` is started on this machine. Knows vLLM's flags and CPU backend; what a person set always wins."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from kimi_serve.errors import LaunchError
from kimi_serve.launch import flags, sizes
from kimi_serve.launch.footprint import BUNDLED, Footprint
from kimi_serve.launch.machine import Machine

PLUGIN = "kimi_serve"
PLUGIN_GROUPS = tuple(
    f"vllm.{kind}_plugins" for kind in ("general", "io_processor", "platform", "stat_logger", "endpoint")
)
VLLM_NAME = Path(__file__).resolve().parent / "vllm_name"  # its METADATA says what it is for

# Said aloud, vLLM without our plugin ends with "No tokenizer registered", and never serves its own class.
OURS = {"--tokenizer-mode": "kimi_vl"}

# vLLM refuses every tool_choice but "none" without a parser, and only its front end knows these two.
TOOLS = {"--enable-auto-tool-choice": "", "--tool-call-parser": "kimi_vl"}

SMALL_MACHINE_CPUS = 4
# A model this small answers in a second either way; on two cores it starts in 49 s instead of 109 s uncompiled. Where
# bfloat16 has no instructions, float32 reads prompts and answers twice as fast; a large model has no room for it.
SMALL_MODEL = sizes.GIB

# vLLM's engine process waits for its worker in a loop that never sleeps, and so takes a core from the threads that
# compute, where there is none to spare. With this variable the two are one process; the API server stays another.
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# Threads wait awake for so many milliseconds after a product: through a step, but not while the API server works.
AWAKE = {"KMP_BLOCKTIME": "5"}
# torch's own switch: weights lie in pages of 2 MB where the kernel grants them, and streaming them misses fewer.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
JOINED = ("LD_PRELOAD", "PYTHONPATH")  # lists, to which what a person set is added


@dataclass(frozen=True, slots=True)
class Plan:
    argv: tuple[str, ...]
    environment: dict[str, str]  # changes only
    notes: tuple[str, ...]  # what a person should know before the engine starts


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asked for: a model (directory or hub id), vLLM's flags, the environment as it is."""

    model: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]

    @property
    def is_local(self) -> bool:
        return Path(self.model).is_dir()


def plan(wish: Wish, machine: Machine, footprint: Footprint | None, vllm: Path) -> Plan:
    """The command line and environment changes; a footprint of None (a hub id) leaves the sizes to vLLM."""
    _require_plugin(wish.environ)
    said = flags.given(wish.arguments)
    if machine.engine == "cpu":
        _require_one_rank(said)
        chosen, notes = _cpu_flags(said, wish.environ, machine, footprint)
        environment = _cpu_environment(said, wish.environ, machine)
    else:
        chosen, notes = _gpu_flags(machine, footprint)
        environment = {}
    if wish.is_local and Path(wish.model).resolve() == BUNDLED:
        chosen["--served-model-name"] = BUNDLED.name
    chosen |= OURS | TOOLS
    defaults = [word for flag, value in chosen.items() if flag not in said for word in (flag, value) if word]
    environment |= {key: value for key, value in _common_environment(wish).items() if key not in wish.environ}
    return Plan((str(vllm), "serve", wish.model, *defaults, *wish.arguments), environment, tuple(notes))


def _require_plugin(environ: Mapping[str, str]) -> None:
    allowed = environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        raise LaunchError(
            f"VLLM_PLUGINS: {allowed!r} leaves {PLUGIN!r} out, and vLLM would serve its own Kimi-VL class; "
            f"add {PLUGIN} to the list or unset it"
        )


def _require_one_rank(said: Mapping[str, str]) -> None:
    """vLLM 0.32 starts several on a CPU and fails at the first request: its experts cannot gather tokens there."""
    asked = said.get("--data-parallel-size", "1")
    if asked != "1":
        raise LaunchError(
            f"--data-parallel-size: {asked} is not supported on CPUs, only 1: vLLM cannot share experts' tokens among "
            "engines there; start several engines behind one gateway"
        )


def installed_plugins() -> list[str]:
    found = {point.name for group in PLUGIN_GROUPS for point in entry_points(group=group)}
    return sorted(found | {PLUGIN})


def _common_environment(wish: Wish) -> dict[str, str]:
    # Unset, the list loads every plugin but those that add routes, and the gateway asks ours whose class runs here.
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": ",".join(installed_plugins())}
    if wish.is_local:
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return environment


def _cpu_flags(
    said: dict[str, str], environ: Mapping[str, str], machine: Machine, footprint: Footprint | None
) -> tuple[dict[str, str], list[str]]:
    """The block size stays vLLM's: 128, and 16 on the reference MLA backend, where nothing else runs."""
    chosen = {
        "--max-num-seqs": str(min(64, max(8, 8 * machine.cores))),
        "--mm-processor-cache-gb": f"{sizes.image_cache(machine.memory_available):g}",
    }
    notes = []
    if not machine.compiler:
        notes.append("no C++ compiler found: torch.compile is off, and answers are slower")
    is_small = footprint is not None and footprint.weights < SMALL_MODEL
    if is_small or not machine.compiler:
        chosen["--enforce-eager"] = ""
    if is_small and not machine.has_bfloat16:
        chosen["--dtype"] = "float32"
    if footprint is None:
        return chosen, notes
    cache_is_set = "--kv-cache-memory-bytes" in said or "VLLM_CPU_KVCACHE_SPACE" in environ
    fitted = sizes.fit(
        footprint, attention(environ, machine), machine.memory_available, _wanted(chosen | said, cache_is_set)
    )
    chosen["--max-model-len"] = str(fitted.model_len)
    chosen["--max-num-batched-tokens"] = str(fitted.step_tokens)
    chosen["--skip-mm-profiling"] = ""  # a minute of the largest picture, to measure memory whose share is set here
    if not cache_is_set:
        chosen["--kv-cache-memory-bytes"] = str(fitted.cache)
    if fitted.model_len < footprint.max_positions and "--max-model-len" not in said:
        notes.append(
            f"context is {fitted.model_len} of the model's {footprint.max_positions} tokens, to fit this machine"
        )
    return chosen, notes


def attention(environ: Mapping[str, str], machine: Machine) -> sizes.Attention:
    """Without AMX, vLLM's MLA is a reference without kernels: there the model caches expanded keys and values."""
    disable = environ.get("VLLM_MLA_DISABLE", "0" if machine.has_amx else "1")
    if disable == "1":
        return "expanded"
    return "latent" if machine.has_amx else "reference"


def _wanted(said: dict[str, str], cache_is_set: bool) -> sizes.Wanted:
    return sizes.Wanted(
        model_len=flags.number(said, "--max-model-len"),
        sequences=flags.number(said, "--max-num-seqs"),
        cache_is_set=cache_is_set,
        value_bytes=4 if said.get("--dtype") in ("float32", "float") else 2,
    )


def _cpu_environment(said: dict[str, str], environ: Mapping[str, str], machine: Machine) -> dict[str, str]:
    environment = _preload(environ, machine) | HUGE_PAGES
    if "VLLM_MLA_DISABLE" not in environ and attention(environ, machine) == "expanded":
        environment["VLLM_MLA_DISABLE"] = "1"
    if not machine.knows_vllm:
        environment["PYTHONPATH"] = ":".join([str(VLLM_NAME), *filter(None, [environ.get("PYTHONPATH")])])
    binding = environ.get("VLLM_CPU_OMP_THREADS_BIND") or _binding(said, machine)
    if binding:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = binding
    if binding == "nobind" and _ranks(said) == 1 and "--distributed-executor-backend" not in said:
        environment |= ONE_PROCESS | AWAKE
    return {key: value for key, value in environment.items() if key not in environ or key in JOINED}


def _preload(environ: Mapping[str, str], machine: Machine) -> dict[str, str]:
    already = environ.get("LD_PRELOAD", "")
    libraries = []
    if machine.tcmalloc and "tcmalloc" not in already:
        libraries.append(str(machine.tcmalloc))
    # Two OpenMP runtimes in one process end in vLLM's assertion, so one that is there stays.
    if machine.openmp and not any(name in already for name in ("libiomp", "libomp", "libgomp")):
        libraries.append(str(machine.openmp))
    if not libraries:
        return {}
    return {"LD_PRELOAD": ":".join([*libraries, *([already] if already else [])])}


def _binding(said: dict[str, str], machine: Machine) -> str | None:
    """None leaves vLLM's own binding: a NUMA node a rank, less a core for the scheduler, one thread a core.

    That leaves a small machine without a thread, and refuses more ranks than NUMA nodes.
    """
    ranks = _ranks(said)
    if ranks == 1:
        return "nobind" if len(machine.cpus) <= SMALL_MACHINE_CPUS else None
    if ranks <= machine.numa_nodes:
        return None
    share = len(machine.cpus) // ranks
    if share == 0:
        return "nobind"
    return "|".join(",".join(map(str, machine.cpus[rank * share : (rank + 1) * share])) for rank in range(ranks))


def _ranks(said: dict[str, str]) -> int:
    return (flags.number(said, "--tensor-parallel-size") or 1) * (flags.number(said, "--pipeline-parallel-size") or 1)


def _gpu_flags(machine: Machine, footprint: Footprint | None) -> tuple[dict[str, str], list[str]]:
    """vLLM's own defaults, a context that fits the memory, and steps that hold the largest image and a prompt."""
    notes = []
    if footprint and machine.gpus and footprint.weights > machine.gpus[0].memory:
        gib = footprint.weights / sizes.GIB
        notes.append(f"weights are {gib:.0f} GiB, more than one {machine.gpus[0].name}: use --tensor-parallel-size")
    return {"--max-model-len": "auto", "--max-num-batched-tokens": str(sizes.GPU_STEP_TOKENS)}, notes
