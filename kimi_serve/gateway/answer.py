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
from kimi_serve.gateway.streaming import SseResponse, current_client, while_connected
from kimi_serve.gateway.tenants.keys import Scope as KeyScope
from kimi_serve.gateway.upstream import Response as Upstream
from kimi_serve.protocol.errors import ApiError
from kimi_serve.protocol.sse import KEEP_ALIVE

_JSON = "application/json"
_COME_BACK = (429, 503)

Prepare = Callable[[Gateway, Caller, bytes, Reservation, Request], Awaitable[Work]]


async def caller_of(request: Request, scope: KeyScope) -> Caller:
    state = request.scope["state"]  # request.state finds the same by a slower way
    gateway: Gateway = state["gateway"]
    caller: Caller | None = state.get("caller")  # of a batch's line, which has no header with a key
    if caller is None:
        caller = await gateway.identity.caller(request.headers.get("authorization"), request.headers.get("x-api-key"))
    caller.require(scope)
    state["journey"].tenant = caller.tenant
    return caller


async def answer(request: Request, scope: KeyScope, prepare: Prepare) -> Response:
    """What the request holds goes with the answer: a stream whose engine is silent comes to hold more meanwhile."""
    held = AsyncExitStack()
    try:
        return _Held(await _answered(request, scope, prepare, held), held)
    except BaseException as error:
        await held.__aexit__(type(error), error, error.__traceback__)
        raise


async def _answered(request: Request, scope: KeyScope, prepare: Prepare, stack: AsyncExitStack) -> Response:
    gateway: Gateway = request.scope["state"]["gateway"]
    caller = await caller_of(request, scope)
    reservation = stack.enter_context(gateway.ledger.body(caller.tenant))
    journey: Journey = request.scope["state"]["journey"]

    async def answered() -> Response:
        raw = await body.read(request, reservation, gateway.settings.body)
        work = _answer(request, caller, raw, reservation, prepare, stack)
        return await while_connected(request.receive, work, journey.leave)

    return await gateway.leaving.bounded(answered())


async def _answer(
    request: Request, caller: Caller, raw: bytes, reservation: Reservation, prepare: Prepare, stack: AsyncExitStack
) -> Response:
    gateway: Gateway = request.scope["state"]["gateway"]
    work = await prepare(gateway, caller, raw, reservation, request)
    journey: Journey = request.scope["state"]["journey"]
    exchange = Exchange(gateway, caller, work, stack, journey)
    await exchange.enter()  # a refusal is a status with Retry-After, so a stream's header waits for the slot too
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
    headers = journey.ratelimit | work.headers_told
    return _Stream(_parts(exchange, opening), opening, headers, work.dialect, journey.leave)


async def _whole(exchange: Exchange, response: Upstream) -> Response:
    data = exchange.renamed(await exchange.read(response))
    if response.status != 200:
        data = exchange.work.dialect.refusal(data, response.status)
        exchange.journey.reason = ENGINE_REFUSED
    elif exchange.work.told is not None:
        data = exchange.work.told.added_to(data)
    headers = exchange.journey.ratelimit | exchange.work.headers_told
    if response.status in _COME_BACK:  # vLLM's own refusals do not say when
        headers |= {"retry-after": "1", "x-kimi-serve-reason": "engine_busy"}
    if "retry-after" in response.headers:
        headers["retry-after"] = response.headers["retry-after"]
    return Response(data, response.status, headers, media_type=response.headers.get("content-type", _JSON))


async def _parts(exchange: Exchange, opening: asyncio.Task[Upstream]) -> AsyncGenerator[bytes, None]:
    """Comments while the engine has said nothing, then its frames; what fails by now is an event."""
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


class _Held(Response):
    """Another response, and what its request holds: given back behind it, also where not one part of it is sent.

    What a request has held is counted after its answer was written rather than before. A client that does not read,
    so that the answer would have to wait, keeps nothing of it but a stream.
    """

    def __init__(self, response: Response, held: AsyncExitStack) -> None:
        self._response, self._held = response, held
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = current_client.get(None)
        is_stream = isinstance(self._response, _Stream)
        if not is_stream and (client is None or not client.is_reading):
            await self._held.aclose()
        try:
            await self._response(scope, receive, send)
        finally:
            await self._held.aclose()


class _Stream(SseResponse):
    """Ends its own opening, also where not one part of it is ever sent."""

    def __init__(
        self,
        parts: AsyncGenerator[bytes, None],
        opening: asyncio.Task[Upstream],
        headers: dict[str, str],
        dialect: Dialect,
        on_left: Callable[[], None],
    ) -> None:
        super().__init__(parts, headers=headers, dialect=dialect, on_left=on_left)
        self._opening = opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await _cancel(self._opening)


async def _cancel(task: asyncio.Task[Upstream]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # told already, or of no interest any more
