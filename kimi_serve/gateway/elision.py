"""Sends a body without the pictures that its engine holds, and again with them where it has forgotten one.

What vLLM 0.32 says then comes before the first token, so the client never learns of it:

* A picture that is named and not held: 400 "Cache miss for image at index 0 but data is not provided."
* Its two caches disagree, as after a request refused once its pictures were processed. The next one with such a
  picture, bytes or not, fails with 500 "Internal server error"; in a stream after its opening frames, which are held
  back here. By then the caches agree again. It may be another fault, so this spends a retry.

Knows status and text of these, and the body; chooses no engine.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from kimi_serve.gateway.dialects import Dialect
from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.parcel import Parcel
from kimi_serve.gateway.replicas.holdings import Holdings
from kimi_serve.gateway.upstream import Response, UpstreamError
from kimi_serve.protocol.sse import FrameTooLargeError, Splitter, data_of

_MISS: Final = re.compile(rb"Cache miss for image at index \d+ but data is not provided")
_FAULT: Final = b"Internal server error"

Send = Callable[[Sequence[bytes]], Awaitable[Response]]
Trouble = Literal["none", "forgotten", "fault"]


@dataclass(frozen=True, slots=True)
class Elision:
    is_on: bool
    metrics: Metrics
    dialect: Dialect
    stream: bool
    may_retry: Callable[[], bool]

    async def deliver(self, parcel: Parcel, holdings: Holdings, send: Send) -> Response:
        """The engine's answer, of a stream from its first token on. Raises UpstreamError."""
        packet = parcel.pack(holdings.holds_image if self.is_on else None)
        response = await send(packet.parts)
        if not parcel.pictures:
            return response
        try:
            trouble = await self._look(response)
        except UpstreamError as error:
            if error.code != "upstream_error" or not self.may_retry():
                raise
            trouble = "forgotten"
        if trouble == "forgotten" or (trouble == "fault" and self.may_retry()):
            self.metrics.elision_misses.inc()
            holdings.forget_images(packet.left_out)
            return await send(parcel.pack().parts)
        self.metrics.elided_images.inc(len(packet.left_out))
        self.metrics.elided_bytes.inc(packet.saved)
        return response

    async def _look(self, response: Response) -> Trouble:
        """What the beginning says, which is left to be read."""
        if response.status in (400, 500):
            said = await response.read()
            trouble: Trouble = "none"
            if response.status == 400 and _MISS.search(said):
                trouble = "forgotten"
            elif response.status == 500 and _FAULT in said:
                trouble = "fault"
            response.chunks.put_back(said)
            return trouble
        if response.status == 200 and self.stream:
            opening, failed = await self._opening(response.chunks)
            response.chunks.put_back(opening)
            return "fault" if failed else "none"
        return "none"

    async def _opening(self, chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
        """Everything up to the first token, and whether the stream fails before it."""
        splitter, seen = Splitter(), bytearray()
        async for chunk in chunks:
            seen += chunk
            try:
                frames = splitter.feed(chunk)
            except FrameTooLargeError:  # whoever reads on meets it again
                break
            for frame in frames:
                if self.dialect.is_content(frame):
                    return bytes(seen), False
                if self._is_failure(frame):
                    return bytes(seen), True
        return bytes(seen), False

    def _is_failure(self, frame: bytes) -> bool:
        data = data_of(frame)
        if data is None or b'"error"' not in data:
            return False
        try:
            said = msgspec.json.decode(data)
        except msgspec.DecodeError:
            return False
        return isinstance(said, dict) and self.dialect.is_failure(said)
