"""A refusal of a request whose body is still on its way. Knows bytes and a little patience; not why it is refused.

Closed at once, a connection with unread bytes is reset, and the client may never see the answer; left open, it would
bring the whole body. So the rest is read for a moment, and thrown away.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

_SMALL: Final = 65_536  # bytes that are with us in an instant; then the connection can be used again
_INSTANT_S: Final = 1.0
_LINGER_S: Final = 2.0
_MOST: Final = 16 << 20  # bytes; who sends more has not looked at the answer


def is_unread(scope: Scope) -> bool:
    return _announced(scope) != 0 and not scope["state"].get("body_is_read", False)


class Parting(Response):
    """Another response, sent as the last one of its connection."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        announced = _announced(scope)
        if announced is not None and announced <= _SMALL and await _read_away(receive, _INSTANT_S):
            await self._response(scope, receive, send)
            return
        self._response.headers["connection"] = "close"

        async def holding_the_end(message: Message) -> None:
            if message["type"] == "http.response.body":
                message["more_body"] = True
            await send(message)

        await self._response(scope, receive, holding_the_end)
        await _read_away(receive, _LINGER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read_away(receive: Receive, seconds: float) -> bool:
    """Whether all of the body has come, or its client has left."""
    left = _MOST
    try:
        async with asyncio.timeout(seconds):
            while left > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message["more_body"]:
                    return True
                left -= len(message["body"])
    except TimeoutError:
        pass
    return False


def _announced(scope: Scope) -> int | None:
    """Bytes; None where the header does not tell."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else None
