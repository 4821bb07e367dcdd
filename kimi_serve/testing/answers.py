"""The bytes of vLLM 0.32's answers. Knows its field names and their order; never when they are sent."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Iterator
from typing import Final, Literal, Protocol

from kimi_serve.protocol.sse import DONE, event
from kimi_serve.testing.asked import Asked
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.other_answers import MessagesAnswer, ResponsesAnswer

Kind = Literal["chat", "completion", "messages", "responses"]
ROUTES: Final[dict[str, Kind]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/messages": "messages",
    "/v1/responses": "responses",
}
OUR_CLASS: Final = "kimi_serve.model.kimi_vl.KimiVLForConditionalGeneration"
ERRORS: Final = {400: "BadRequestError", 500: "InternalServerError", 503: "ServiceUnavailableError"}
FAULT: Final = "Internal server error"
_numbers = itertools.count(1)


class Spoken(Protocol):
    """An answer, whole or frame by frame."""

    tokens: int

    def opening(self) -> bytes: ...
    def contents(self) -> Iterator[bytes]: ...
    def ending(self) -> bytes: ...
    def whole(self) -> bytes: ...


def to(kind: Kind, dials: Dials, asked: Asked) -> Spoken:
    match kind:
        case "messages":
            return MessagesAnswer(dials, asked)
        case "responses":
            return ResponsesAnswer(dials, asked)
        case _:
            return Answer(kind, dials, asked)


class Answer:
    """One answer in vLLM's shape, frame by frame; a token's frame is made once and sent as often as it is asked for."""

    def __init__(self, kind: Kind, dials: Dials, asked: Asked) -> None:
        self.tokens, is_cut = asked.length(dials.tokens)
        self._finish = "length" if is_cut else "stop"
        self._kind, self._dials, self._asked = kind, dials, asked
        self._id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{next(_numbers):032x}"
        self._created = int(time.time())
        self._usage = {
            "prompt_tokens": dials.prompt_tokens,
            "total_tokens": dials.prompt_tokens + self.tokens,
            "completion_tokens": self.tokens,
        }

    def opening(self) -> bytes:
        """The frame that names the role; completions have none."""
        if self._kind == "completion":
            return b""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._frame([choice], prompt_token_ids=None, prompt_text=None)

    def contents(self) -> Iterator[bytes]:
        thoughts = min(self._dials.thought_tokens, self.tokens - 1) if self._kind == "chat" else 0
        if thoughts > 0:
            yield from itertools.repeat(self._thought(), thoughts)
        yield from itertools.repeat(self._token(), self.tokens - 1 - max(0, thoughts))
        yield self._closing()

    def ending(self) -> bytes:
        return self._frame([], usage=self._usage) + DONE if self._asked.include_usage else DONE

    def _thought(self) -> bytes:
        delta = {"reasoning": self._dials.text}
        return self._frame([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": None}])

    def _token(self) -> bytes:
        return self._frame([self._choice(self._dials.text, {"finish_reason": None})])

    def _closing(self) -> bytes:
        """The last token comes with the reason why it is the last."""
        text = self._dials.text if self.tokens else ""
        return self._frame([self._choice(text, {"finish_reason": self._finish, "stop_reason": None})])

    def whole(self) -> bytes:
        """The answer to a request that did not ask for a stream."""
        text = self._dials.text * self.tokens
        choice: dict[str, object] = {"index": 0}
        if self._kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None, "reasoning": None}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": self._finish, "stop_reason": None, "token_ids": None}
        named = {"id": self._id, "object": self._object(""), "created": self._created, "model": self._dials.model}
        ends = {"service_tier": None, "system_fingerprint": None, "usage": self._usage, "kv_transfer_params": None}
        return dumps({**named, "choices": [choice], **ends})

    def _choice(self, text: str, reasons: dict[str, object]) -> dict[str, object]:
        if self._kind == "chat":
            return {"index": 0, "delta": {"content": text}, "logprobs": None, **reasons, "token_ids": None}
        return {"index": 0, "text": text, "logprobs": None, "stop_reason": None, **reasons}

    def _frame(self, choices: list[dict[str, object]], **more: object) -> bytes:
        named = {"id": self._id, "object": self._object(".chunk"), "created": self._created, "model": self._dials.model}
        return event(dumps({**named, "choices": choices, **more}))

    def _object(self, suffix: str) -> str:
        return f"chat.completion{suffix}" if self._kind == "chat" else "text_completion"


def models(dials: Dials) -> bytes:
    now = int(time.time())
    permission = {
        "id": f"modelperm-{uuid.uuid4().hex}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    card = {
        "id": dials.model,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": dials.model,
        "parent": None,
    }
    more = {"max_model_len": dials.max_model_len, "permission": [permission]}
    return dumps({"object": "list", "data": [{**card, **more}]})


def info(dials: Dials, instance: str) -> bytes:
    told = {"model_class": OUR_CLASS, "model": dials.model, "max_model_len": dials.max_model_len}
    return dumps(
        {
            **told,
            "instance": instance,
            "image_cache_bytes": dials.image_cache_bytes,
            "max_running_requests": dials.slots or None,
        }
    )


def metrics(dials: Dials, in_flight: int) -> bytes:
    running = min(in_flight, dials.slots or in_flight)
    labels = f'{{engine="0",model_name="{dials.model}"}}'
    gauges = {"num_requests_running": running, "num_requests_waiting": in_flight - running, "kv_cache_usage_perc": 0.0}
    lines = (f"# TYPE vllm:{name} gauge\nvllm:{name}{labels} {float(value)}\n" for name, value in gauges.items())
    return "".join(lines).encode()


def error(status: int, message: str) -> bytes:
    return dumps({"error": {"message": message, "type": ERRORS[status], "param": None, "code": status}})


def refusal(kind: Kind, message: str, status: int = 400) -> bytes:
    """Of a request that was read: vLLM's own word for the type, also in Anthropic's envelope."""
    if kind == "messages":
        return dumps({"type": "error", "error": {"type": ERRORS[status], "message": message}})
    return error(status, message)


def fault(kind: Kind) -> bytes | None:
    """What is left of a stream in which the engine says FAULT. None: it breaks off."""
    match kind:
        case "responses":
            return None
        case "messages":
            message = "2 validation errors for ChatCompletionStreamResponse"
            told = {"type": "error", "error": {"type": "internal_error", "message": message}}
            return event(dumps(told), "error")
        case _:
            return event(error(500, FAULT)) + DONE


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
