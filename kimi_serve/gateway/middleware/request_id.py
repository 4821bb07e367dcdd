"""A name for every request, in its answer and in every log line. Knows headers only."""

from __future__ import annotations

import random
import re
from contextvars import ContextVar
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER: Final = b"x-request-id"
_ACCEPTABLE: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
current: ContextVar[str] = ContextVar("request_id", default="-")


class RequestId:
    """Takes the client's x-request-id where it is harmless, and makes one where it is not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = next((value for name, value in headers if name == _HEADER), b"")
        name = given if _ACCEPTABLE.fullmatch(given) else b"req-%024x" % random.getrandbits(96)
        if given != name or sum(line[0] == _HEADER for line in headers) != 1:
            scope["headers"] = [*(line for line in headers if line[0] != _HEADER), (_HEADER, name)]
        current.set(name.decode())

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (_HEADER, name)]
            await send(message)

        await self._app(scope, receive, named)
