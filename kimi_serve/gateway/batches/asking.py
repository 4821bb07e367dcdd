"""One line as a request to our own application, on the way of every other request. Knows ASGI; opens no socket.

So limits, costs, metrics, the log and the answer are those of a live request with the batch's key; only its class is
`low`, whatever the key's own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import ASGIApp, Message

from kimi_serve.gateway.batches.patience import Answer
from kimi_serve.gateway.batches.records import Endpoint
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.identity import Caller
from kimi_serve.protocol.errors import ApiError


@dataclass(frozen=True, slots=True)
class Asker:
    app: ASGIApp
    gateway: Gateway

    async def ask(self, endpoint: Endpoint, key: str | None, body: bytes, name: str) -> Answer:
        """`name`: the request's id."""
        try:
            caller = await self.gateway.identity.caller_with(key)
        except ApiError as error:
            return Answer.refused(error)
        exchange = _Exchange(body)
        scope = self._scope(endpoint, replace(caller, priority="low"), len(body), name)
        await self.app(scope, exchange.receive, exchange.send)
        return exchange.answer

    def _scope(self, path: str, caller: Caller, length: int, name: str) -> dict[str, Any]:
        headers = {"content-type": "application/json", "content-length": str(length), "x-request-id": name}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
            "client": None,
            "server": None,
            "state": {"gateway": self.gateway, "caller": caller},
        }


class _Exchange:
    """Sends the body at once, stays connected, and keeps what comes back."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._parts: list[bytes] = []
        self.answer = Answer()

    async def receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # until whoever asked is cancelled: nobody leaves
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answer.status = message["status"]
            self.answer.headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in message["headers"]}
            return
        self._parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            self.answer.body = b"".join(self._parts)
