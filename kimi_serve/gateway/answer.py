"""From a request to its response. Knows the order of the steps and who gives back what; each step is a neighbour's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kimi_serve.gateway import body
from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.dialects import Dialect
from kimi_serve.gateway.forward import Exchange, Work
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.identity import Caller
from kimi_serve.gateway.journey import ENGINE_REFUSED, Journey
from kimi_serve.gateway.streaming import SseResponse, while_connected
from kimi_serve.gateway.tenants.keys import Scope as KeyScope
from kimi_serve.gateway.upstream import Response as Upstream
from kimi_serve.protocol.errors import ApiError
from kimi_serve.protocol.sse import KEEP_ALIVE

_JSON = "application/json"
_COME_BACK = (429, 503)

Prepare = Callable[[Gateway, Caller, bytes, Reservation, Request], Awaitable[Work]]


async def caller_of(request: Request, scope: KeyScope) -> Caller:
    gateway: Gateway = request.state.gateway
    caller = await gateway.identity.caller(request.headers.get("authorization"), request.headers.get("x-api-key"))
    caller.require(scope)
    request.state.journey.tenant = caller.tenant
    return caller


async def answer(request: Request, scope: KeyScope, prepare: Prepare) -> Response:
    gateway: Gateway = request.state.gateway
    async with AsyncExitStack() as stack:
        caller = await caller_of(request, scope)
        reservation = stack.enter_context(gateway.ledger.body(caller.tenant))
        journey: Journey = request.state.journey

        async def answered() -> Response:
            raw = await body.read(request, reservation, gateway.settings.body)
            work = _answer(request, caller, raw, reservation, prepare, stack)
            return await while_connected(request.receive, work, journey.leave)

        return await gateway.leaving.bounded(answered())


async def _answer(
    request: Request, caller: Caller, raw: bytes, reservation: Reservation, prepare: Prepare, stack: AsyncExitStack
) -> Response:
    gateway: Gateway = request.state.gateway
    work = await prepare(gateway, caller, raw, reservation, request)
    journey: Journey = request.state.journey
    exchange = Exchange(gateway, caller, work, stack, journey)
    if not work.stream:
        return await _whole(exchange, await exchange.open())
    opening = asyncio.create_task(gateway.leaving.bounded(exchange.open()))
    try:
        await asyncio.wait({opening}, timeout=gateway.settings.stream.keep_alive_s)
        if opening.done() and (response := opening.result()).status != 200:
            return await _whole(exchange, response)
    except BaseException:
        await _cancel(opening)
        raise
    headers = journey.ratelimit | {"x-kimi-serve-prompt-tokens": str(work.cost.tokens)}
    return _Stream(_parts(exchange, opening), opening, stack.pop_all(), headers, work.dialect, journey.leave)


async def _whole(exchange: Exchange, response: Upstream) -> Response:
    data = exchange.renamed(await exchange.read(response))
    if response.status != 200:
        data = exchange.work.dialect.refusal(data, response.status)
        exchange.journey.reason = ENGINE_REFUSED
    headers = exchange.journey.ratelimit | {"x-kimi-serve-prompt-tokens": str(exchange.work.cost.tokens)}
    if response.status in _COME_BACK:  # vLLM's own refusals do not say when
        headers |= {"retry-after": "1", "x-kimi-serve-reason": "engine_busy"}
    if "retry-after" in response.headers:
        headers["retry-after"] = response.headers["retry-after"]
    return Response(data, response.status, headers, media_type=response.headers.get("content-type", _JSON))


async def _parts(exchange: Exchange, opening: asyncio.Task[Upstream]) -> AsyncGenerator[bytes, None]:
    """Comments while the request waits for its turn, then the engine's frames; what fails by now is an event."""
    wait_s, dialect = exchange.gateway.settings.stream.keep_alive_s, exchange.work.dialect
    while not opening.done():
        yield KEEP_ALIVE
        await asyncio.wait({opening}, timeout=wait_s)
    try:
        response = opening.result()
    except ApiError as error:
        exchange.broke_off(error.code)
        yield dialect.failure(error, 0)
        return
    if response.status != 200:
        await exchange.read(response)
        exchange.broke_off("upstream_error")
        message = f"the engine refused the request with status {response.status}"
        yield dialect.failure(ApiError("upstream_error", message), 0)
        return
    with exchange.told_of_leaving(response):
        async with aclosing(exchange.frames(response)) as frames:
            async for frame in frames:
                yield frame


class _Stream(SseResponse):
    """Holds what the request holds, also where not one part of it is ever sent."""

    def __init__(
        self,
        parts: AsyncGenerator[bytes, None],
        opening: asyncio.Task[Upstream],
        held: AsyncExitStack,
        headers: dict[str, str],
        dialect: Dialect,
        on_left: Callable[[], None],
    ) -> None:
        super().__init__(parts, headers=headers, dialect=dialect, on_left=on_left)
        self._opening, self._held = opening, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await _cancel(self._opening)
            await self._held.aclose()


async def _cancel(task: asyncio.Task[Upstream]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # told already, or of no interest any more
