"""What is known of one request on its way, for its log line, spans and metrics. Never a text, a picture or a key."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self

from kimi_serve.gateway.fitting.told import Told
from kimi_serve.gateway.prompt_cost import PromptCost
from kimi_serve.gateway.streaming import ClientGoneError
from kimi_serve.gateway.tracing import NO_SPAN, OPERATIONS, Attributes, Kind, Span, Value, of_address
from kimi_serve.protocol.errors import ApiError

StageName = Literal["body", "media", "queue", "upstream"]
STAGES: Final[tuple[StageName, ...]] = ("body", "media", "queue", "upstream")
LEFT: Final = "client_left"
ENGINE_REFUSED: Final = "engine_refused"  # with the status that the answer has
_NO_ATTRIBUTES: Final[Attributes] = {}


@dataclass(slots=True)
class Journey:
    span: Span = NO_SPAN
    arrived: float = field(default_factory=time.monotonic)
    tenant: str = "-"
    model: str | None = None
    stream: bool = False
    images: int = 0
    prompt_tokens: int | None = None
    image_tokens: int = 0
    told: Told | None = None  # what was done so that it fits
    completion_tokens: int | None = None
    replica: str | None = None
    attempts: int = 0
    ttft_s: float | None = None
    ratelimit: dict[str, str] = field(default_factory=dict)  # headers: what is left of the key's limits
    reason: str | None = None  # why it was refused, or broke off: a code
    stage: StageName | Literal["other"] = "other"
    left_at: float | None = None  # when the client was seen to be gone
    left_in: str = "other"  # the stage in which it was
    asked: Attributes = field(default_factory=dict)  # numbers of the request, for the span of the call
    seconds: dict[StageName, float] = field(default_factory=dict)

    def enter(self, name: StageName) -> Stage:
        return Stage(self, name, name, "internal", _NO_ATTRIBUTES)

    def call(self, path: str, replica: str) -> Stage:
        """An attempt at an engine, which lasts until its answer is done with."""
        self.replica = replica
        self.attempts += 1
        operation = OPERATIONS.get(path, "chat")
        attributes = self._of_call(operation) | of_address(replica) if self.span.is_recorded else _NO_ATTRIBUTES
        return Stage(self, "upstream", f"{operation} {self.model}", "client", attributes)

    def _of_call(self, operation: str) -> dict[str, Value]:
        told: dict[str, Value] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "vllm",
            "gen_ai.output.type": "text",
            "gen_ai.request.stream": self.stream,
            **self.asked,
        }
        return told | ({} if self.model is None else {"gen_ai.request.model": self.model})

    def leave(self) -> None:
        """The client has closed its connection. Only the first time counts."""
        if self.left_at is None:
            self.left_at = time.monotonic()
            self.left_in, self.reason = self.stage, LEFT

    def fitted(self, cost: PromptCost, told: Told) -> None:
        self.images, self.image_tokens, self.prompt_tokens = len(cost.image_tokens), sum(cost.image_tokens), cost.tokens
        self.told = told if told.has_changed else None

    def line(self) -> dict[str, object]:
        """The fields of its log line that are known."""
        told: dict[str, object] = {"tenant": self.tenant}
        for name in ("model", "prompt_tokens", "completion_tokens", "replica", "reason"):
            if (value := getattr(self, name)) is not None:
                told[name] = value
        if self.model is not None:
            told["stream"] = self.stream
        if self.images:
            told |= {"images": self.images, "image_tokens": self.image_tokens}
        if self.told is not None:
            told |= {"fit": self.told.fit, "prompt_tokens_before": self.told.tokens_before}
            told |= {"images_scaled": self.told.scaled, "images_left_out": self.told.left_out}
        if self.attempts > 1:
            told["attempts"] = self.attempts
        if self.ttft_s is not None:
            told["ttft_s"] = round(self.ttft_s, 4)
        told |= {f"{name}_s": round(self.seconds[name], 4) for name in STAGES if name in self.seconds}
        if self.span.trace_id is not None:
            told["trace_id"] = self.span.trace_id
        return told

    def attributes(self) -> dict[str, Value]:
        """Of its own span, at its end."""
        told: dict[str, Value] = {"kimi_serve.tenant": self.tenant}
        if self.model is not None:
            told["gen_ai.request.model"] = self.model
        if self.prompt_tokens is not None:
            told |= {"gen_ai.usage.input_tokens": self.prompt_tokens, "kimi_serve.images": self.images}
        if self.attempts:
            told["kimi_serve.attempts"] = self.attempts
        return told


class Stage:
    """A part of the way: its seconds, its span, and how it ended."""

    def __init__(self, journey: Journey, name: StageName, title: str, kind: Kind, attributes: Attributes) -> None:
        self._journey, self._name, self._before = journey, name, journey.stage
        journey.stage = name
        self.span = journey.span.child(title, kind, attributes)
        self.error: str | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        seconds = self._journey.seconds
        seconds[self._name] = seconds.get(self._name, 0.0) + time.monotonic() - self._began
        if error is None:
            self._journey.stage = self._before
        elif self.error is None:
            self.error = error.code if isinstance(error, ApiError) else _named(error, self._journey)
        self.span.end(self.error)


def _named(error: BaseException, journey: Journey) -> str:
    has_left = journey.left_at is not None or isinstance(error, ClientGoneError)
    return LEFT if has_left else type(error).__name__
