"""The application: routes, what happens around them, and how errors look. Knows FastAPI; no rule of the gateway."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kimi_serve import __version__
from kimi_serve.gateway import dialects
from kimi_serve.gateway.gateway import Gateway, running
from kimi_serve.gateway.middleware.access_log import AccessLog
from kimi_serve.gateway.middleware.request_id import RequestId
from kimi_serve.gateway.routes import generate, local
from kimi_serve.gateway.settings import Settings
from kimi_serve.protocol.errors import ApiError

logger = logging.getLogger(__name__)


def create_app(settings: Settings, opened: Callable[[Gateway], None] = lambda gateway: None) -> FastAPI:
    """`opened` is given the running gateway, once the application has started."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with running(settings) as gateway:
            opened(gateway)
            yield {"gateway": gateway}

    app = FastAPI(title="kimi_serve", version=__version__, lifespan=lifespan, redirect_slashes=False)
    app.include_router(generate.router)
    app.include_router(local.router)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(AccessLog)
    app.add_middleware(RequestId)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    request.state.gateway.metrics.refusals.labels(error.code).inc()
    return JSONResponse(dialects.of_path(request.url.path).envelope(error), error.status, error.headers())


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    message = f"{request.method} {request.url.path[:100]}: there is no such route; /docs lists those there are"
    refused = await _refused(request, ApiError(code, message))
    if error.headers:
        refused.headers.update(error.headers)
    return refused


async def _failed(request: Request, error: Exception) -> Response:
    logger.error("a fault of the gateway", exc_info=error)
    message = "a fault of the gateway; its log has this request's x-request-id"
    return await _refused(request, ApiError("internal_error", message))
