"""What of a request changes the shape of its answer. Knows the names of fields; not what an answer looks like."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

_LIMITS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_PARSED_UP_TO: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Asked:
    stream: bool
    include_usage: bool
    max_tokens: int | None

    def length(self, tokens: int) -> tuple[int, bool]:
        """Of an answer that would have so many tokens; and whether the limit cuts it."""
        length = tokens if self.max_tokens is None else min(tokens, self.max_tokens)
        return length, length == self.max_tokens


def read(body: bytes) -> Asked:
    """Raises ValueError for what is not a JSON object."""
    if len(body) > _PARSED_UP_TO:
        # Megabytes of pictures would cost more than all else here, and a benchmark would measure the double.
        return Asked(_says(body, b'"stream"', b"true"), _says(body, b'"include_usage"', b"true"), None)
    request = json.loads(body)
    if not isinstance(request, dict):
        raise ValueError("the body is not a JSON object")  # noqa: TRY004  # it is input
    options = request.get("stream_options") or {}
    limit = next((request[name] for name in _LIMITS if request.get(name)), None)
    if not isinstance(options, dict) or not isinstance(limit, int | None):
        raise ValueError("stream_options or a limit on tokens is of the wrong type")  # noqa: TRY004  # it is input
    return Asked(request.get("stream") is True, options.get("include_usage") is True, limit)


def _says(body: bytes, key: bytes, value: bytes) -> bool:
    at = body.find(key)
    return at >= 0 and body[at + len(key) : at + len(key) + 16].lstrip(b" \t\r\n:").startswith(value)
