"""Sends a body without the pictures that its engine holds, and again with them where it has forgotten one.

vLLM 0.32 refuses a picture that is named and not held before it sends anything of the answer: 400 "Cache miss for image
at index 0 but data is not provided." Where its own two caches disagree, it ends with 500 "Internal server error", and
has them agree by the next request. Knows status and text of these; chooses no engine.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.parcel import Parcel
from kimi_serve.gateway.replicas.holdings import Holdings
from kimi_serve.gateway.upstream import Response

_FORGOTTEN: Final = {
    400: re.compile(rb"Cache miss for image at index \d+ but data is not provided"),
    500: re.compile(rb"Internal server error"),
}

Send = Callable[[bytes], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Elision:
    is_on: bool
    metrics: Metrics

    async def deliver(self, parcel: Parcel, holdings: Holdings, send: Send) -> Response:
        """The engine's answer. Raises what `send` does, and UpstreamError where a refusal breaks off."""
        packet = parcel.pack(holdings.holds_image if self.is_on else None)
        response = await send(packet.data)
        if not packet.left_out:
            return response
        if response.status in _FORGOTTEN:
            said = await response.read()
            if _FORGOTTEN[response.status].search(said):
                self.metrics.elision_misses.inc()
                holdings.forget_images(packet.left_out)
                return await send(parcel.pack().data)
            response = replace(response, chunks=_once(said))
        self.metrics.elided_images.inc(len(packet.left_out))
        self.metrics.elided_bytes.inc(packet.saved)
        return response


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
