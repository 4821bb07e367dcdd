"""What `kimi-serve batch` is asked to do. Knows options; loads no client, so that every verb starts quickly."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from kimi_serve.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Options:
    input: Path
    output: Path
    url: str  # without a slash, and without /v1
    endpoint: str
    key: str | None
    concurrency: int
    attempts: int
    timeout_s: float
    retry_s: float = 1.0  # until a line that failed is asked again, longer with every time


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("input", type=Path, help="JSON lines with custom_id, method, url and body")
    verb.add_argument("output", type=Path, help="the answers, a line each; lines that are there already are not asked")
    verb.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    verb.add_argument(
        "--model", metavar="DIR", help="no server runs: start one with this checkpoint, and stop it at the end"
    )
    verb.add_argument("--vllm", type=Path, metavar="PATH", help="with --model: the vllm executable")
    verb.add_argument("--endpoint", default="/v1/chat/completions", help="the url of all lines (default: %(default)s)")
    verb.add_argument("--key", help="the API key (default: KIMI_SERVE_API_KEY, where it is set)")
    verb.add_argument("--concurrency", type=int, default=16, help="lines at once (default: %(default)s)")
    verb.add_argument("--attempts", type=int, default=5, help="for a line that fails (default: %(default)s)")
    verb.add_argument("--timeout", type=float, default=3600.0, help="seconds for an answer (default: %(default)s)")


def from_arguments(given: argparse.Namespace) -> Options:
    """Raises ConfigError."""
    for name in ("concurrency", "attempts", "timeout"):
        if getattr(given, name) <= 0:
            raise ConfigError(f"--{name}: {getattr(given, name)} is not supported; expected more than 0")
    url = given.url.rstrip("/").removesuffix("/v1")
    key = given.key or os.environ.get("KIMI_SERVE_API_KEY")
    return Options(
        given.input, given.output, url, given.endpoint, key, given.concurrency, given.attempts, given.timeout
    )
