"""What the bytes of an answer say: tokens, counts, errors. Knows OpenAI's chunks and errors; no socket and no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from benchmarks.load.records import Outcome
from kimi_serve.protocol.sse import Splitter, data_of

ENDED_EARLY: Final = "the stream ended without [DONE]"


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None

    @property
    def has_text(self) -> bool:
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls)


class Choice(msgspec.Struct):
    delta: Delta = msgspec.field(default_factory=Delta)


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class Chunk(msgspec.Struct):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Error | None = None


@dataclass(slots=True)
class Seen:
    """What has come of one answer so far; `began` is when its request was sent, by the client's clock."""

    began: float
    token_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    retry_after_s: float | None = None
    outcome: Outcome = "failed"
    why: str | None = ENDED_EARLY
    _splitter: Splitter = field(default_factory=Splitter)

    def feed(self, chunk: bytes, at_s: float) -> None:
        """Bytes of a stream that came at_s after the request was sent. Raises ValueError where it is none."""
        for frame in self._splitter.feed(chunk):
            if (data := data_of(frame)) == b"[DONE]":
                self._end()
            elif data is not None:
                self._note(msgspec.json.decode(data, type=Chunk), at_s)

    def refuse(self, status: int, body: bytes, reason: str | None, retry_after: str | None) -> None:
        """429 and 503 that say when to come back are refusals; without, and all else, they are failures."""
        self.why = f"{status} {reason or _code_in(body)}".strip()
        after = _number(retry_after)
        if status in (429, 503) and after is not None:
            self.outcome, self.retry_after_s = "refused", after
        elif status in (429, 503):
            self.why += " without Retry-After"

    def end(self, outcome: Outcome, why: str | None = None) -> None:
        """Whatever came, this is what became of it."""
        self.outcome, self.why = outcome, why

    def _end(self) -> None:
        if self.why == ENDED_EARLY:  # and not an error event
            self.end("answered")

    def _note(self, chunk: Chunk, at_s: float) -> None:
        if chunk.error is not None:
            self.why = f"stream: {_code_of(chunk.error)}"
            return
        if chunk.usage is not None:
            self.prompt_tokens, self.answer_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        for choice in chunk.choices or ():
            # A frame that only names the role is no token; after the first text each is, though its text may be empty.
            if self.token_s or choice.delta.has_text:
                self.token_s.append(at_s)


def _code_in(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body, type=Chunk).error
    except ValueError:
        return ""  # a proxy's page, say: its status says enough
    return "" if error is None else _code_of(error)


def _code_of(error: Error) -> str:
    return str(error.code or error.type or "an error without a code")


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None  # a date, which our gateway never sends
