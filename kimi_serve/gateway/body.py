"""A request's body, read within its limits. Knows bytes and time; not what is in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import Receive

from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.journey import Journey
from kimi_serve.gateway.settings import Body
from kimi_serve.gateway.streaming import ClientGoneError, current_client
from kimi_serve.protocol.errors import ApiError


async def read(request: Request, reservation: Reservation, limits: Body) -> bytes:
    """Every byte counts from its arrival. ApiError: body_too_large, body_timeout, and the ledger's."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.max_bytes:
        raise _too_large(limits)
    state = request.scope["state"]
    journey: Journey = state["journey"]
    with journey.enter("body"):
        raw = await _read(request, reservation, limits)
    gateway: Gateway = state["gateway"]
    gateway.metrics.body_bytes.observe(len(raw))
    state["body_is_read"] = True
    return raw


async def _read(request: Request, reservation: Reservation, limits: Body) -> bytes:
    parts: list[bytes] = []

    def take(part: bytes) -> None:
        if reservation.held + len(part) > limits.max_bytes:
            raise _too_large(limits)
        reservation.reserve(len(part))
        parts.append(part)

    client = current_client.get(None)
    try:
        if client is not None and client.has_sent_all:  # most have, and nothing is waited for
            await _receive(request.receive, take)
        else:
            async with asyncio.timeout(limits.timeout_s):
                while await _receive(request.receive, take):
                    if client is not None:
                        await client.rest_of_body(take)
                        break
    except TimeoutError as error:
        message = f"the body did not arrive within {limits.timeout_s:g} seconds; send it faster or make it smaller"
        raise ApiError("body_timeout", message) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _receive(receive: Receive, take: Callable[[bytes], None]) -> bool:
    """The next part; whether there are more."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    if part := message.get("body", b""):
        take(part)
    return bool(message.get("more_body", False))


def _too_large(limits: Body) -> ApiError:
    message = f"the body exceeds the limit of {limits.max_bytes} bytes: send fewer or smaller images"
    return ApiError("body_too_large", message)
