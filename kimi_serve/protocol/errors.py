"""Every refusal that a client can meet, as OpenAI's error envelope. Knows codes and statuses; knows no route.

One table: a code that is not in it cannot be raised, and the documentation's table is tested against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Code:
    status: int
    type: str  # OpenAI's word
    meaning: str  # for the documentation


_INVALID, _SERVER, _RATE = "invalid_request_error", "server_error", "rate_limit_error"

CODES: Final[dict[str, Code]] = {
    "invalid_json": Code(400, _INVALID, "The body is not a JSON object."),
    "invalid_value": Code(400, _INVALID, "A field holds a value that is not supported; `param` names it."),
    "field_not_allowed": Code(400, _INVALID, "A field that clients may not set."),
    "context_length_exceeded": Code(400, _INVALID, "Prompt, images and max_tokens do not fit the model's context."),
    "too_many_images": Code(400, _INVALID, "More images than the server takes in one prompt."),
    "invalid_image": Code(400, _INVALID, "An image's header cannot be read, or states an impossible size."),
    "unsupported_media_type": Code(400, _INVALID, "The bytes are not of a kind that is served."),
    "image_too_large": Code(400, _INVALID, "An image's bytes or pixels exceed the limit."),
    "invalid_document": Code(400, _INVALID, "A document is damaged, or reading it ended its process."),
    "encrypted_document": Code(400, _INVALID, "A document needs a password."),
    "document_too_large": Code(400, _INVALID, "A document's bytes, pages, text, time or memory exceed the limit."),
    "invalid_video": Code(400, _INVALID, "A video is damaged, or reading it ended its process."),
    "video_too_large": Code(400, _INVALID, "A video's bytes, frames, duration, time or memory exceed the limit."),
    "invalid_media_url": Code(400, _INVALID, "The URL cannot be used: scheme, syntax, credentials, port."),
    "media_url_forbidden": Code(400, _INVALID, "The URL leads to an address or a domain that is not allowed."),
    "media_fetch_failed": Code(400, _INVALID, "The URL's server refused, failed, or redirected too often."),
    "media_fetch_timeout": Code(400, _INVALID, "The URL's server did not answer in time."),
    "invalid_upload": Code(400, _INVALID, "The body is not multipart/form-data with one file, or breaks off."),
    "invalid_http": Code(400, _INVALID, "The bytes are not a request of HTTP/1.1."),
    "missing_key": Code(401, "authentication_error", "No API key was sent."),
    "invalid_key": Code(401, "authentication_error", "The API key is unknown, expired or revoked."),
    "model_not_allowed": Code(403, "permission_error", "The key may not use this model."),
    "scope_missing": Code(403, "permission_error", "The key lacks the scope that this route needs."),
    "file_quota_exceeded": Code(403, "permission_error", "This key keeps as many files or bytes as it may."),
    "not_found": Code(404, _INVALID, "No such route."),
    "model_not_found": Code(404, _INVALID, "No replica serves this model."),
    "files_disabled": Code(404, _INVALID, "This server keeps no files and runs no batches."),
    "file_not_found": Code(404, _INVALID, "There is no such file, or it has expired, or another key's tenant has it."),
    "batch_not_found": Code(404, _INVALID, "There is no such batch, or another key's tenant has it."),
    "method_not_allowed": Code(405, _INVALID, "The route exists, but not for this method."),
    "header_timeout": Code(408, _INVALID, "The request's header did not arrive in time."),
    "body_timeout": Code(408, _INVALID, "The body did not arrive in time."),
    "batch_has_ended": Code(409, _INVALID, "The batch has ended, and cannot be cancelled any more."),
    "body_too_large": Code(413, _INVALID, "The body exceeds the limit on bytes."),
    "file_too_large": Code(413, _INVALID, "The file exceeds the limit on bytes."),
    "rate_limited": Code(429, _RATE, "A limit of this key is reached; Retry-After says when to come back."),
    "budget_exhausted": Code(429, _RATE, "This key's budget for the month is used up."),
    "tenant_queue_full": Code(429, _RATE, "This key has too many requests waiting."),
    "tenant_bytes_in_flight": Code(429, _RATE, "This key has too many bytes of bodies in flight."),
    "too_many_batches": Code(429, _RATE, "This key has too many batches that have not ended."),
    "header_too_large": Code(431, _INVALID, "The request's header exceeds the limit on bytes."),
    "internal_error": Code(500, _SERVER, "A fault of the gateway; its log has the request id."),
    "upstream_error": Code(502, _SERVER, "The engine failed while it answered."),
    "too_many_connections": Code(503, _SERVER, "The gateway has as many connections as it takes."),
    "queue_full": Code(503, _SERVER, "Too many requests wait; Retry-After follows the measured drain rate."),
    "queue_timeout": Code(503, _SERVER, "The request waited longer than its deadline."),
    "bytes_in_flight": Code(503, _SERVER, "The bodies in flight fill the memory set aside for them."),
    "keys_unavailable": Code(503, _SERVER, "The store of keys does not answer, and the key is not known from before."),
    "files_full": Code(503, _SERVER, "The space for files is used up."),
    "files_unavailable": Code(503, _SERVER, "The folder of files or its database does not answer."),
    "media_busy": Code(503, _SERVER, "As many documents and videos are read as may be at once; retry later."),
    "no_replica": Code(503, _SERVER, "No engine is ready."),
    "draining": Code(503, _SERVER, "The gateway is shutting down."),
    "upstream_timeout": Code(504, _SERVER, "The engine did not answer in time."),
}


class ApiError(Exception):
    """A refusal: `code` from CODES, one sentence that says what to do, the field it is about."""

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.retry_after = code, message, param, retry_after
        self.status = CODES[code].status
        self.type = CODES[code].type

    def envelope(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, at least one, and the reason where a proxy can read it."""
        headers = {"x-kimi-serve-reason": self.code}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        elif self.status == 503:
            headers["retry-after"] = "1"  # who raised it knows nothing better
        elif self.status == 429:
            headers["x-should-retry"] = "false"  # OpenAI's and Anthropic's clients heed it: this would never fit
        return headers


def kind_of(value: object) -> str:
    """A value by its JSON kind alone, where it may be what was said or shown."""
    names = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
        list: "a list",
    }
    return names.get(type(value), "null")


def short(value: object) -> str:
    """A value as an error shows it. What holds other values is named only: it may hold what was said or shown."""
    if isinstance(value, dict | list):
        return kind_of(value)
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
