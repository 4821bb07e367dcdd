"""What a trace is told of a request. Knows names of attributes; what sends them is otlp.py, loaded on demand.

The names are OpenTelemetry's for HTTP servers and for generative AI; what has none there begins with kimi_serve.
A value is a count, a name of ours or an engine's address: never a text, a picture, a URL's query or a key.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, Literal, Protocol
from urllib.parse import urlsplit

from kimi_serve.errors import ConfigError
from kimi_serve.gateway.settings import Tracing

Value = str | int | float | bool
Attributes = Mapping[str, Value]
Kind = Literal["server", "internal", "client"]

OPERATIONS: Final = {"/v1/completions": "text_completion"}  # every other route of an engine is a chat
_NEEDED: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_OF_REQUESTS: Final = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "n": "gen_ai.request.choice.count",
}
_WHOLE: Final = frozenset({"max_tokens", "top_k", "seed", "count"})  # the last words of names whose values are integers
_LARGEST: Final = 2**63 - 1  # what OTLP has room for


class Span(Protocol):
    is_recorded: bool  # where not, nothing needs to be gathered for it

    @property
    def trace_id(self) -> str | None: ...
    def child(self, name: str, kind: Kind, attributes: Attributes) -> Span: ...
    def note(self, attributes: Attributes) -> None: ...
    def rename(self, name: str) -> None: ...

    def end(self, error: str | None = None, *, is_fault: bool = True) -> None:
        """`is_fault`: not where a server has rightly refused; the conventions count that as no failure of its span."""

    def headers(self) -> Mapping[str, str]:
        """For whoever is called within this span: they take the place of the client's own."""


class Tracer(Protocol):
    def server(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span: ...


class NoSpan:
    is_recorded = False
    trace_id = None

    def child(self, name: str, kind: Kind, attributes: Attributes) -> Span:
        return self

    def note(self, attributes: Attributes) -> None:
        pass

    def rename(self, name: str) -> None:
        pass

    def end(self, error: str | None = None, *, is_fault: bool = True) -> None:
        pass

    def headers(self) -> Mapping[str, str]:
        return {}


NO_SPAN: Final = NoSpan()


class NoTracing:
    def server(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        return NO_SPAN


def require_packages(settings: Tracing) -> None:
    """Raises ConfigError where spans are wanted and cannot be sent."""
    if settings.endpoint is None:
        return
    try:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    except ModuleNotFoundError:  # not even the first part of the name is there
        missing = list(_NEEDED)
    if missing:
        message = f"tracing.endpoint: is set, and {' and '.join(missing)} are not installed"
        raise ConfigError(f"{message}; expected kimi_serve[tracing], or no endpoint")


@asynccontextmanager
async def opened(settings: Tracing) -> AsyncIterator[Tracer]:
    """Sends spans until the block ends. Without an endpoint nothing of OpenTelemetry is imported."""
    require_packages(settings)
    if settings.endpoint is None:
        yield NoTracing()
        return
    from kimi_serve.gateway.otlp import sending  # costs memory that only tracing is worth

    async with sending(settings) as tracer:
        yield tracer


def of_address(url: str) -> dict[str, Value]:
    parts = urlsplit(url)
    told: dict[str, Value] = {"server.address": parts.hostname or ""}
    return told | ({} if parts.port is None else {"server.port": parts.port})


def of_request(body: Mapping[str, object]) -> dict[str, Value]:
    """The numbers that a request sets. What is no number here is no attribute: a text could be anything."""
    found: dict[str, Value] = {}
    for name, attribute in _OF_REQUESTS.items():
        value = body.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
            continue
        is_whole = attribute.rpartition(".")[2] in _WHOLE
        if not is_whole or isinstance(value, int):
            found[attribute] = value if is_whole else float(value)
    return found
