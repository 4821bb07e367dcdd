"""compose.yaml as an engine of containers reads it: merged, interpolated. Knows the file's form; starts nothing."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "compose"


def read(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    text = (FOLDER / "compose.yaml").read_text("utf-8")
    loaded: dict[str, Any] = yaml.safe_load(interpolated(text, environ or {}))
    return loaded


def interpolated(text: str, environ: Mapping[str, str]) -> str:
    """${NAME:-default}, the one form that the file uses."""
    assert not re.search(r"\$(?!\{[A-Z_]+:-[^}]*\})", text)
    return re.sub(r"\$\{([A-Z_]+):-([^}]*)\}", lambda match: environ.get(match[1]) or match[2], text)


def services(profile: str) -> dict[str, Any]:
    return {name: one for name, one in read()["services"].items() if profile in one["profiles"]}


def environment(service: dict[str, Any], replaced: Mapping[str, str]) -> dict[str, str]:
    """Of a service that runs as a plain process: what only a container has is replaced. Ours alone, and the PATH."""
    given = {"PATH": os.environ["PATH"]}
    for name, value in service.get("environment", {}).items():
        for old, new in replaced.items():
            value = value.replace(old, new)
        given[name] = value
    return given


def seconds(duration: str) -> int:
    found = re.fullmatch(r"(\d+)(s|m)", duration)
    assert found, duration
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]
