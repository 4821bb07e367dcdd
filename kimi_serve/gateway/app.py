"""The application: routes, what happens around them, and how errors look. Knows FastAPI; no rule of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from kimi_serve import __version__
from kimi_serve.gateway import logs, refusals
from kimi_serve.gateway.batches.asking import Asker
from kimi_serve.gateway.batches.runner import Runner
from kimi_serve.gateway.gateway import Gateway, running
from kimi_serve.gateway.middleware.access_log import AccessLog
from kimi_serve.gateway.middleware.lane import Lane
from kimi_serve.gateway.middleware.request_id import RequestId
from kimi_serve.gateway.parting import Parting, is_unread
from kimi_serve.gateway.playground import route as playground
from kimi_serve.gateway.routes import batches, files, generate, local
from kimi_serve.gateway.routes.documented import Documented
from kimi_serve.gateway.settings import Settings
from kimi_serve.gateway.streaming import ClientGoneError
from kimi_serve.protocol.errors import ApiError


def create_app(settings: Settings, opened: Callable[[Gateway], None] = lambda gateway: None) -> FastAPI:
    """`opened` is given the running gateway, once the application has started."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        asyncio.get_running_loop().set_exception_handler(logs.of_loop)
        async with running(settings) as gateway, _batches(gateway, app) as runner:
            opened(gateway)
            yield {"gateway": gateway, "runner": runner}

    app = Documented(title="kimi_serve", version=__version__, lifespan=lifespan, redirect_slashes=False)
    app.include_router(generate.router)
    app.include_router(local.router)
    app.include_router(files.router)
    app.include_router(batches.router)
    if settings.playground.enabled:
        app.include_router(playground.router())
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(ClientGoneError, _gone)
    handlers = {ApiError: _refused, ClientGoneError: _gone}
    app.add_middleware(Lane, routes=generate.bare_routes(), handlers=handlers)
    app.add_middleware(AccessLog)
    app.add_middleware(RequestId)
    return app


@asynccontextmanager
async def _batches(gateway: Gateway, app: ASGIApp) -> AsyncIterator[Runner | None]:
    """What runs them, where files are kept."""
    if gateway.archive is None:
        yield None
        return
    async with Runner(gateway, gateway.archive, Asker(app, gateway)) as runner:
        yield runner


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _last(request, refusals.refused(request, error))


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    # Not request.url: that is put together with the header Host, which can be anything.
    message = f"{request.method} {request.scope['path'][:100]}: there is no such route; /docs lists those there are"
    response = refusals.refused(request, ApiError(code, message))
    if error.headers:
        response.headers.update(error.headers)
    return _last(request, response)


def _last(request: Request, response: Response) -> Response:
    """Of its connection, where nobody has read the body."""
    return Parting(response) if is_unread(request.scope) else response


async def _gone(request: Request, error: Exception) -> Response:
    assert isinstance(error, ClientGoneError)
    return refusals.gone(request)
