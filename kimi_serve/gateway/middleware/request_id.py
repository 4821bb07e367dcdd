"""A name for every request, in its answer and in every log line. Knows headers only."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ACCEPTABLE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
current: ContextVar[str] = ContextVar("request_id", default="-")


class RequestId:
    """Takes the client's x-request-id where it is harmless, and makes one where it is not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = MutableHeaders(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if _ACCEPTABLE.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        headers["x-request-id"] = name
        current.set(name)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        await self._app(scope, receive, named)
