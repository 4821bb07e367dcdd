"""A request's body, read within its limits. Knows bytes and time; not what is in them."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.journey import Journey
from kimi_serve.gateway.settings import Body
from kimi_serve.gateway.streaming import ClientGoneError
from kimi_serve.protocol.errors import ApiError


async def read(request: Request, reservation: Reservation, limits: Body) -> bytes:
    """Every byte counts from its arrival. ApiError: body_too_large, body_timeout, and the ledger's."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.max_bytes:
        raise _too_large(limits)
    journey: Journey = request.state.journey
    with journey.enter("body"):
        raw = await _read(request, reservation, limits)
    gateway: Gateway = request.state.gateway
    gateway.metrics.body_bytes.observe(len(raw))
    request.state.body_is_read = True
    return raw


async def _read(request: Request, reservation: Reservation, limits: Body) -> bytes:
    parts: list[bytes] = []
    try:
        async with asyncio.timeout(limits.timeout_s):
            async for part in request.stream():
                if reservation.held + len(part) > limits.max_bytes:
                    raise _too_large(limits)
                reservation.reserve(len(part))
                parts.append(part)
    except TimeoutError as error:
        message = f"the body did not arrive within {limits.timeout_s:g} seconds; send it faster or make it smaller"
        raise ApiError("body_timeout", message) from error
    except ClientDisconnect as error:
        raise ClientGoneError from error
    return b"".join(parts)


def _too_large(limits: Body) -> ApiError:
    message = f"the body exceeds the limit of {limits.max_bytes} bytes: send fewer or smaller images"
    return ApiError("body_too_large", message)
