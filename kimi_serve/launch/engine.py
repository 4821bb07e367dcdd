"""`kimi-serve engine`: becomes `vllm serve` with this machine's defaults. Knows how to show a plan and exec it."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from kimi_serve.errors import LaunchError
from kimi_serve.launch import defaults, footprint, machine


def prepare(
    model: str | None, arguments: Sequence[str], vllm: Path | None, environ: Mapping[str, str]
) -> defaults.Plan:
    """Reads the machine and the checkpoint, and makes the plan."""
    wish = defaults.Wish(model or str(bundled()), tuple(arguments), environ)
    if looks_like_path(wish.model) and not wish.is_local:
        raise LaunchError(f"MODEL: {wish.model} is not a directory")
    here = machine.read()
    if here.engine is None and vllm is None:
        raise LaunchError("vllm: not installed; pip install 'kimi_serve[gpu]' on GPUs, or `make setup` for a CPU")
    sizes = footprint.read(Path(wish.model)) if wish.is_local else None
    return defaults.plan(wish, here, sizes, vllm or find_vllm())


def bundled() -> Path:
    if not (footprint.BUNDLED / "config.json").is_file():
        raise LaunchError(f"MODEL: not given, and this installation holds no bundled checkpoint at {footprint.BUNDLED}")
    return footprint.BUNDLED


def looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def find_vllm() -> Path:
    """The vllm of this very environment before any other on the PATH: the plugin is installed here."""
    beside = Path(sys.executable).parent / "vllm"
    found = str(beside) if beside.is_file() else shutil.which("vllm")
    if found is None:
        raise LaunchError(f"vllm: no executable beside {sys.executable} or on the PATH; name one with --vllm")
    return Path(found)


def describe(plan: defaults.Plan) -> str:
    """The plan as a line that a shell would take."""
    changes = [f"{key}={shlex.quote(value)}" for key, value in plan.environment.items()]
    return " ".join([*changes, shlex.join(plan.argv)])


def as_json(plan: defaults.Plan) -> str:
    return json.dumps({"argv": plan.argv, "environment": plan.environment, "notes": plan.notes})


def become(plan: defaults.Plan) -> NoReturn:
    """Replaces this process, so that signals and the exit code are vLLM's own."""
    print(describe(plan), file=sys.stderr, flush=True)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    try:
        os.execve(plan.argv[0], plan.argv, {**os.environ, **plan.environment})
    except OSError as error:
        raise LaunchError(f"vllm: cannot run {plan.argv[0]}: {error.strerror}") from error
