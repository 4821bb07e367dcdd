"""How a refusal leaves the gateway: its answer, its count, its reason in the log. Knows errors; refuses nothing."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kimi_serve.gateway import dialects
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.journey import Journey
from kimi_serve.protocol.errors import ApiError

CLIENT_LEFT: Final = 499  # nginx's number; nobody is there to read it but the access log


def refused(request: Request, error: ApiError) -> Response:
    gateway: Gateway = request.state.gateway
    journey: Journey = request.state.journey
    gateway.metrics.refusals.labels(error.code).inc()
    journey.reason = error.code
    headers = journey.ratelimit | error.headers()
    return JSONResponse(dialects.of_path(request.scope["path"]).envelope(error), error.status, headers)


def failed(request: Request) -> Response:
    """Where something went wrong that nobody foresaw."""
    message = "a fault of the gateway; its log has this request's x-request-id"
    return refused(request, ApiError("internal_error", message))


def gone(request: Request) -> Response:
    journey: Journey = request.state.journey
    journey.leave()
    return Response(status_code=CLIENT_LEFT)
