"""The busiest routes, found by their path alone, without what FastAPI prepares for every other. Knows no route's work.

What FastAPI says of them, and every other method on them, stays FastAPI's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Handler = Callable[[Request, Exception], Awaitable[Response]]


class Lane:
    """For routes whose function takes the request and gives the response; `handlers` answer what it raises."""

    def __init__(self, app: ASGIApp, routes: Iterable[APIRoute], handlers: Mapping[type[Exception], Handler]) -> None:
        self._app = app
        self._routes = {(method, route.path): route for route in routes for method in route.methods}
        self._handlers, self._handled = handlers, tuple(handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request, has_begun = Request(scope, receive, send), False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            response = await route.endpoint(request)
            await response(scope, receive, watched)
        except self._handled as error:
            if has_begun:
                raise
            handler = next(handle for kind, handle in self._handlers.items() if isinstance(error, kind))
            await (await handler(request, error))(scope, receive, send)
