"""How the routes' answers differ: ends, content, usage and errors. Knows frames; nothing of how they are sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from kimi_serve.gateway.tenants import headers
from kimi_serve.protocol.errors import ApiError
from kimi_serve.protocol.sse import DONE, data_of, event

_LONGEST_DONE: Final = 32
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_OF_PROMPT: Final = ("prompt_tokens_details", "input_tokens_details")
_OF_COMPLETION: Final = ("completion_tokens_details", "output_tokens_details")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Dialect:
    is_end: Callable[[bytes], bool]  # of a frame: no other belongs to the answer
    is_content: Callable[[bytes], bool]  # of a frame: it carries a token
    usage_of: Callable[[Json], object]  # where a frame's data has the usage
    is_failure: Callable[[Json], bool]  # of a frame's data: the engine says that it failed
    failure: Callable[[ApiError, int], bytes]  # how a stream ends without success, after that many frames
    envelope: Callable[[ApiError], dict[str, object]]
    refusal: Callable[[bytes, int], bytes]  # an engine's own refusal, by its status
    prompt_fields: tuple[str, ...]  # of the usage: together they are the prompt
    completion_field: str
    renames_thoughts: bool = False
    ratelimit: Callable[[headers.Standings], dict[str, str]] = headers.openai

    def counted(self, usage: Mapping[str, object]) -> dict[str, object]:
        """The usage by the names of chat, and what it says of caches and thoughts. TypeError where a count is none."""
        counts = [usage.get(name) or 0 for name in self.prompt_fields]
        cached = usage.get("cache_read_input_tokens") or _detail(usage, _OF_PROMPT, "cached_tokens")
        return {
            "prompt_tokens": sum(counts),  # type: ignore[arg-type]
            "completion_tokens": usage.get(self.completion_field) or 0,
            "cached_tokens": cached,
            "reasoning_tokens": _detail(usage, _OF_COMPLETION, "reasoning_tokens"),
        }


def _detail(usage: Mapping[str, object], places: tuple[str, ...], name: str) -> object:
    told = next((usage[place] for place in places if usage.get(place)), None)
    return (told.get(name) or 0) if isinstance(told, dict) else 0


def of_path(path: str) -> Dialect:
    """For errors, also where no route was reached."""
    return ANTHROPIC if path == "/v1/messages" or path.startswith("/v1/messages/") else CHAT


def _names(frame: bytes, *events: bytes) -> bool:
    return frame.startswith(tuple(b"event: %s\n" % name for name in events))


def _ends_chat(frame: bytes) -> bool:
    return len(frame) <= _LONGEST_DONE and data_of(frame) == b"[DONE]"


def _is_chat_content(frame: bytes) -> bool:
    """It has a choice, and is not the first one of a chat, which names the role and no token."""
    return b'"choices":[{' in frame and b'"delta":{"role":' not in frame


def _chat_failure(error: ApiError, _: int) -> bytes:
    """OpenAI's envelope as an event, then [DONE]."""
    return event(json.dumps(error.envelope())) + DONE


def _ends_messages(frame: bytes) -> bool:
    return _names(frame, b"message_stop", b"error")


def _is_messages_content(frame: bytes) -> bool:
    return _names(frame, b"content_block_delta") and b'"signature_delta"' not in frame


def _messages_envelope(error: ApiError) -> dict[str, object]:
    return _anthropic(error.status, error.message)


def _messages_failure(error: ApiError, _: int) -> bytes:
    return event(json.dumps(_messages_envelope(error)), "error")


def _messages_refusal(data: bytes, status: int) -> bytes:
    """vLLM refuses what is malformed in OpenAI's envelope, whatever the route, and has its own words for types."""
    try:
        message = msgspec.json.decode(data)["error"]["message"]
    except (msgspec.DecodeError, KeyError, TypeError):
        message = f"the engine refused the request with status {status}"
    return json.dumps(_anthropic(status, str(message))).encode()


def _anthropic(status: int, message: str) -> dict[str, object]:
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _ends_response(frame: bytes) -> bool:
    return _names(frame, b"response.completed", b"response.incomplete", b"response.failed", b"error")


def _is_response_content(frame: bytes) -> bool:
    """Text, thoughts or the arguments of a call."""
    return frame.startswith(b"event: response.") and frame.partition(b"\n")[0].endswith(b".delta")


def _response_usage(said: Json) -> object:
    response = said.get("response")
    return response.get("usage") if isinstance(response, dict) else None


def _has_response_failed(said: Json) -> bool:
    return said.get("type") in ("error", "response.failed") or bool(said.get("error"))


def _response_failure(error: ApiError, frames: int) -> bytes:
    said = {"code": error.code, "message": error.message, "param": error.param, "sequence_number": frames}
    return event(json.dumps({"type": "error", **said}), "error")


CHAT: Final = Dialect(
    _ends_chat,
    _is_chat_content,
    lambda said: said.get("usage"),
    lambda said: bool(said.get("error")),
    _chat_failure,
    ApiError.envelope,
    lambda data, _: data,
    ("prompt_tokens",),
    "completion_tokens",
    renames_thoughts=True,
)
ANTHROPIC: Final = Dialect(
    _ends_messages,
    _is_messages_content,
    lambda said: said.get("usage"),
    lambda said: bool(said.get("error")),
    _messages_failure,
    _messages_envelope,
    _messages_refusal,
    ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
    "output_tokens",
    ratelimit=headers.anthropic,
)
RESPONSES: Final = Dialect(
    _ends_response,
    _is_response_content,
    _response_usage,
    _has_response_failed,
    _response_failure,
    ApiError.envelope,
    lambda data, _: data,
    ("input_tokens",),
    "output_tokens",
)
