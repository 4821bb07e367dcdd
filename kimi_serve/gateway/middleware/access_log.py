"""One log line, one span, one count for every answer. Knows routes, statuses and times; no body, no key, no query."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kimi_serve.gateway import refusals
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.journey import Journey
from kimi_serve.gateway.middleware import request_id
from kimi_serve.gateway.tracing import NO_SPAN, Span

QUIET: Final = frozenset({"/livez", "/readyz", "/metrics"})
logger = logging.getLogger("kimi_serve.access")


class AccessLog:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        journey, status = Journey(_span(scope)), 0
        scope["state"]["journey"] = journey

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:  # the process boundary: no fault of one request ends the others
            logger.exception("a fault of the gateway")
            if status:
                journey.reason = "internal_error"
                raise
            await refusals.failed(Request(scope))(scope, receive, watched)
        finally:
            # In a turn of the loop of its own: what was written in this one leaves at its end.
            asyncio.get_running_loop().call_soon(_note, scope, journey, status, time.monotonic())


def _span(scope: Scope) -> Span:
    if scope["path"] in QUIET:
        return NO_SPAN
    gateway: Gateway = scope["state"]["gateway"]
    method = scope["method"]
    return gateway.tracer.server(method, Headers(scope=scope), {"http.request.method": method})


def _note(scope: Scope, journey: Journey, status: int, now: float) -> None:
    gateway: Gateway = scope["state"]["gateway"]
    m = gateway.metrics
    route = getattr(scope.get("route"), "path", "other")  # a path that is no route could be anything
    m.requests.labels(route, str(status), m.tenant(journey.tenant)).inc()
    m.request_seconds.labels(route).observe(now - journey.arrived)
    if "body" in journey.seconds:
        m.body_seconds.observe(journey.seconds["body"])
    if journey.left_at is not None:
        m.left.labels(journey.left_in).inc()
        m.cancel_seconds.observe(now - journey.left_at)
    if route in QUIET:
        return
    _end(journey, scope["method"], route, status)
    fields = {"route": route, "method": scope["method"], "status": status, "seconds": round(now - journey.arrived, 4)}
    logger.info("answered", extra={**fields, **journey.line()})


def _end(journey: Journey, method: str, route: str, status: int) -> None:
    if journey.span.is_recorded:
        journey.span.rename(f"{method} {route}")
        told = {"http.route": route, "kimi_serve.request_id": request_id.current.get()}
        journey.span.note(journey.attributes() | told | {"http.response.status_code": status})
    error = journey.reason or (str(status) if status >= 500 else None)
    journey.span.end(error, is_fault=status >= 500 or status < 400)
