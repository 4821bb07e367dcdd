"""What a person already said to `vllm serve`. Knows how its flags are spelled; sets none."""

import re
from collections.abc import Sequence
from pathlib import Path

from kimi_serve.errors import LaunchError

# vLLM's short spellings of the flags that the defaults look at.
ALIASES = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-dp": "--data-parallel-size"}
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def given(arguments: Sequence[str]) -> dict[str, str]:
    """Flag -> value ("" for a switch) as vLLM would read them; the keys of a --config file count too."""
    flags: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if not argument.startswith("-") or _is_number(argument):
            continue
        name, equals, value = argument.partition("=")
        following = arguments[position + 1] if position + 1 < len(arguments) else "-"
        if not equals and (not following.startswith("-") or _is_number(following)):
            value = following
        flags[_canonical(name)] = value
    if "--config" in flags:
        return _config_file(Path(flags["--config"])) | flags
    return flags


def number(flags: dict[str, str], name: str) -> int | None:
    """A flag's integer, as vLLM reads it (8192, 8k = 8000, 8K = 8192); None where it is absent, a word or negative."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG]?)", flags.get(name, ""))
    return int(float(match[1]) * _MULTIPLES[match[2]]) if match else None


def _canonical(name: str) -> str:
    return ALIASES.get(name, name.replace("_", "-"))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-\d+(\.\d+)?", text) is not None


def _config_file(path: Path) -> dict[str, str]:
    """The top-level keys of vLLM's YAML: enough to know what is set, without a YAML parser."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LaunchError(f"--config: cannot read {path}: {error.strerror}") from error
    pairs = (re.match(r"([A-Za-z][\w-]*)\s*:\s*(.*)", line) for line in lines)
    return {_canonical("--" + pair[1]): pair[2].strip().strip("'\"") for pair in pairs if pair}
