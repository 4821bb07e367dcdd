"""One log line and one count for every answer. Knows routes, statuses and times; no body, no key, no query."""

from __future__ import annotations

import logging
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kimi_serve.gateway.gateway import Gateway

QUIET: Final = frozenset({"/livez", "/readyz", "/metrics"})
logger = logging.getLogger("kimi_serve.access")


class AccessLog:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._note(scope, status, time.monotonic() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        gateway: Gateway = scope["state"]["gateway"]
        tenant = scope["state"].get("tenant", "-")
        route = getattr(scope.get("route"), "path", "other")  # a path that is no route could be anything
        gateway.metrics.requests.labels(route, str(status), gateway.metrics.tenant(tenant)).inc()
        gateway.metrics.request_seconds.observe(seconds)
        if route not in QUIET:
            fields = {"route": route, "method": scope["method"], "status": status, "tenant": tenant}
            logger.info("answered", extra={**fields, "seconds": round(seconds, 4)})
