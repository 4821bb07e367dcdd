"""The lines of a batch's output, as OpenAI writes them. Knows JSON; never who answered."""

from __future__ import annotations

from typing import Final

import msgspec

from kimi_serve.gateway.batches.records import Ending, Endpoint, Usage
from kimi_serve.gateway.dialects import CHAT, RESPONSES

_NEVER_ASKED: Final = {
    "expired": ("batch_expired", "This request was not answered before the batch's completion window ended."),
    "cancelled": ("batch_cancelled", "This request was not answered before the batch was cancelled."),
}


def answered(batch: str, number: int, custom_id: str, status: int, request_id: str, body: bytes) -> bytes:
    response = {"status_code": status, "request_id": request_id, "body": _in_one_line(body)}
    return _line(batch, number, custom_id, response, None)


class _Answer(msgspec.Struct):
    usage: dict[str, object] | None = None


def usage_of(endpoint: Endpoint, body: bytes) -> Usage:
    """None of it where an answer says nothing, as errors do."""
    dialect = RESPONSES if endpoint == "/v1/responses" else CHAT
    try:
        told = dialect.counted(msgspec.json.decode(body, type=_Answer).usage or {})
        names = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
        return msgspec.convert([told[name] for name in names], Usage)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return Usage()


def never_answered(batch: str, number: int, custom_id: str, ending: Ending) -> bytes:
    code, message = _NEVER_ASKED[ending]
    return _line(batch, number, custom_id, None, {"code": code, "message": message})


def _line(batch: str, number: int, custom_id: str, response: object, error: object) -> bytes:
    told = {
        "id": f"batch_req_{batch.removeprefix('batch_')}_{number}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(told) + b"\n"


def _in_one_line(body: bytes) -> object:
    """JSON as it is, byte for byte where it is in one line already."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body.decode("utf-8", "replace")
    return decoded if b"\n" in body or b"\r" in body else msgspec.Raw(body)
