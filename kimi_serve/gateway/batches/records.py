"""What is known of a batch, and how OpenAI's clients see it. Knows states and times; runs nothing."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from kimi_serve.gateway.files.records import lifetime
from kimi_serve.gateway.settings import BatchSettings
from kimi_serve.protocol import chat
from kimi_serve.protocol.chat import Json
from kimi_serve.protocol.errors import ApiError, short

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
Ending = Literal["completed", "expired", "cancelled"]
Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
ENDPOINTS: Final[tuple[Endpoint, ...]] = get_args(Endpoint)
_TIMES: Final = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_FIELDS: Final = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_MOST_PAIRS, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512


class Usage(NamedTuple):
    """Tokens of a line."""

    input_tokens: int = 0
    cached_tokens: int = 0  # of the input
    output_tokens: int = 0
    reasoning_tokens: int = 0  # of the output


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line of the input is refused."""

    code: str
    message: str
    line: int | None = None  # from 1
    param: str | None = None

    def shown(self) -> Json:
        return {"code": self.code, "message": self.message, "param": self.param, "line": self.line}


@dataclass(frozen=True, slots=True)
class Order:
    """What a client asks for."""

    endpoint: Endpoint
    input_file: str
    completion_window: str
    window_s: int
    metadata: Mapping[str, str] | None
    output_expires: int | None


@dataclass(frozen=True, slots=True)
class Batch:
    id: str
    tenant: str
    key: str | None  # the id of the key that made it, whose limits its lines are counted against
    endpoint: Endpoint
    input_file: str
    input_hash: str
    completion_window: str
    metadata: Mapping[str, str] | None
    output_expires: int | None
    output_file: str  # ids, chosen at the beginning: files that are written a second time are the same ones
    error_file: str
    status: Status
    created: int
    expires: int
    ended: int | None
    times: Mapping[Status, int]  # when it came into each state
    problems: Sequence[Json] | None
    total: int
    completed: int
    failed: int
    has_output: bool
    has_errors: bool
    input_tokens: int = 0  # of all answered lines, as are these
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def shown(self) -> Json:
        """OpenAI's batch object."""
        errors = None if self.problems is None else {"object": "list", "data": list(self.problems)}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors,
            "input_file_id": self.input_file,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file if self.has_output else None,
            "error_file_id": self.error_file if self.has_errors else None,
            "created_at": self.created,
            "expires_at": self.expires,
            **{f"{name}_at": self.times.get(name) for name in _TIMES},
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": self.input_tokens,
                "input_tokens_details": {"cached_tokens": self.cached_tokens},
                "output_tokens": self.output_tokens,
                "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
                "total_tokens": self.input_tokens + self.output_tokens,
            },
            "metadata": self.metadata,
        }


def new_batch_id() -> str:
    return f"batch_{secrets.token_hex(16)}"


def read_order(body: Json, rules: BatchSettings) -> Order:
    if unknown := next((name for name in body if name not in _FIELDS), None):
        what = f"{unknown[:40]}: there is no such field; expected {', '.join(_FIELDS)}"
        raise ApiError("invalid_value", what, param=unknown[:40])
    endpoint, window = _text(body, "endpoint"), _text(body, "completion_window")
    chosen = next((one for one in ENDPOINTS if one == endpoint), None)
    if chosen is None:
        what = f"endpoint: {short(endpoint)} is not supported; expected one of {', '.join(ENDPOINTS)}"
        raise ApiError("invalid_value", what, param="endpoint")
    return Order(
        chosen,
        _text(body, "input_file_id"),
        window,
        _seconds(window, rules.max_window_s),
        _metadata(body.get("metadata")),
        _output_lifetime(chat.field(body, "output_expires_after", dict)),
    )


def _text(body: Json, name: str) -> str:
    value: str | None = chat.field(body, name, str)
    if not value:
        raise ApiError("invalid_value", f"{name}: is missing; expected text", param=name)
    return value


def _seconds(window: str, most: float) -> int:
    match = _WINDOW.fullmatch(window)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= most:
        what = f"completion_window: {short(window)} is not supported; expected a time such as 24h, at most {most:g}s"
        raise ApiError("invalid_value", what, param="completion_window")
    return seconds


def _metadata(given: object) -> Mapping[str, str] | None:
    if given is None:
        return None
    is_text = isinstance(given, dict) and all(isinstance(value, str) for value in given.values())
    if not isinstance(given, dict) or not is_text or len(given) > _MOST_PAIRS:
        what = f"metadata: expected an object of at most {_MOST_PAIRS} texts"
        raise ApiError("invalid_value", what, param="metadata")
    if any(len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE for key, value in given.items()):
        what = f"metadata: expected keys of at most {_LONGEST_KEY} characters and values of at most {_LONGEST_VALUE}"
        raise ApiError("invalid_value", what, param="metadata")
    return given


def _output_lifetime(given: Json | None) -> int | None:
    return None if given is None else lifetime(given.get("anchor"), given.get("seconds"), "output_expires_after")
