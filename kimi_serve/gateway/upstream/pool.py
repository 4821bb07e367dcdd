"""One request to an engine, over pooled connections. Knows addresses and how long a connection may rest.

Leaving `Upstream.open` before the answer is complete drops the connection, whatever state it is in: that is how an
engine learns that nobody listens any more.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Self
from urllib.parse import urlsplit

from kimi_serve.gateway import liveness
from kimi_serve.gateway.upstream.chunks import Chunks, Timeouts, UpstreamError, late
from kimi_serve.gateway.upstream.wire import Wire, connect
from kimi_serve.protocol.errors import ApiError

_RESTS_S: Final = 4.0  # uvicorn, and so vLLM, closes an idle connection after 5
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: Mapping[str, str]  # by lower-case name
    chunks: Chunks

    async def begin(self) -> None:
        """Returns with the first bytes of the body, which stay to be read. Raises UpstreamError."""
        await self.chunks.begin()

    def end(self, error: ApiError) -> None:
        """Whoever reads the body gets this error instead of what is still to come."""
        self.chunks.end(error)

    async def read(self) -> bytes:
        """All of the body, for answers that do not stream."""
        return b"".join([chunk async for chunk in self.chunks])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an engine listens."""

    host: str
    port: int
    is_tls: bool
    named: str  # for the header Host
    prefix: str  # of every path


class Upstream:
    """The connections of one process to all its engines: as many as there are requests under way."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        """Must be made inside the event loop."""
        self.timeouts = Timeouts() if timeouts is None else timeouts
        self.patient = replace(self.timeouts, first_byte_s=self.timeouts.total_s)  # for answers that do not stream
        self._loop = asyncio.get_running_loop()
        self._resting: dict[_Place, list[Wire]] = {}  # last used last
        self._sweeper: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for wires in self._resting.values():
            for wire in wires:
                wire.close()
        self._resting.clear()
        await asyncio.sleep(0)  # for the connections to hear of it

    @property
    def resting(self) -> int:
        """Connections that wait for a request."""
        return sum(wire.is_open for wires in self._resting.values() for wire in wires)

    def open(
        self,
        base_url: str,
        path: str,
        body: bytes | Sequence[bytes] | None,
        headers: Mapping[str, str],
        *,
        timeouts: Timeouts | None = None,
    ) -> Asking:
        """`async with` POSTs the body (GETs without one), sends no header that is not given but Host and the body's
        length, and gives a Response. Raises UpstreamError; a status is never an error here.
        """
        parts = (body,) if isinstance(body, bytes) else body
        place = _place(base_url)
        return Asking(self, place, _head(place, path, parts, headers), parts or (), timeouts or self.timeouts)

    async def connection(self, place: _Place, limits: Timeouts) -> Wire:
        return self._rested(place) or await self._connected(place, limits)

    def keep(self, place: _Place, wire: Wire) -> None:
        """For the next request."""
        wire.rests_since = self._loop.time()
        self._resting.setdefault(place, []).append(wire)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_RESTS_S, self._sweep)

    def _rested(self, place: _Place) -> Wire | None:
        wires = self._resting.get(place)
        while wires:
            wire = wires.pop()
            if wire.is_open and self._loop.time() - wire.rests_since < _RESTS_S:
                return wire
            wire.close()
        return None

    async def _connected(self, place: _Place, limits: Timeouts) -> Wire:
        try:
            async with asyncio.timeout(limits.connect_s) as limit:
                wire = await connect(place.host, place.port, self._context() if place.is_tls else None)
        except OSError as error:  # a TimeoutError is one
            if limit.expired():
                raise late("connect_s", limits, "connect", received=False) from error
            message = "the engine takes no connection"
            raise UpstreamError("upstream_error", message, stage="connect", received=False) from error
        liveness.watch(wire.transport.get_extra_info("socket"), limits.unreachable_s)
        return wire

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _sweep(self) -> None:
        """Closes what nobody has used; one timer for all of them."""
        oldest, self._sweeper = self._loop.time() - _RESTS_S, None
        for place, wires in list(self._resting.items()):
            for wire in wires:
                if wire.rests_since <= oldest:
                    wire.close()
            self._resting[place] = [wire for wire in wires if wire.is_open]
            if not self._resting[place]:
                del self._resting[place]
        if self._resting:
            self._sweeper = self._loop.call_later(_RESTS_S / 2, self._sweep)


class Asking:
    """One request and its answer."""

    def __init__(self, upstream: Upstream, place: _Place, head: bytes, body: Sequence[bytes], limits: Timeouts) -> None:
        self._upstream, self._place, self._head, self._body, self._limits = upstream, place, head, body, limits
        self._wire: Wire | None = None
        self._chunks: Chunks | None = None

    async def __aenter__(self) -> Response:
        began = asyncio.get_running_loop().time()
        wire = self._wire = await self._upstream.connection(self._place, self._limits)
        chunks = self._chunks = Chunks(wire, self._limits, began)
        try:
            wire.ask(self._head, self._body)
            await chunks.head()
        except BaseException:
            self.close()
            raise
        return Response(wire.status, wire.headers, chunks)

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the connection, where the answer is not complete; or keeps it for the next request."""
        assert self._wire is not None
        assert self._chunks is not None
        self._chunks.close()
        if self._wire.rest():
            self._upstream.keep(self._place, self._wire)


@lru_cache(maxsize=256)
def _place(url: str) -> _Place:
    parts = urlsplit(url)
    assert parts.hostname is not None
    port = parts.port or _PORTS[parts.scheme]
    named = parts.netloc.rpartition("@")[2]
    return _Place(parts.hostname, port, parts.scheme == "https", named, parts.path.rstrip("/"))


def _head(place: _Place, path: str, body: Sequence[bytes] | None, headers: Mapping[str, str]) -> bytes:
    lines = [f"{'GET' if body is None else 'POST'} {place.prefix}{path} HTTP/1.1", f"host: {place.named}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"content-length: {sum(map(len, body))}")
    text = "\r\n".join((*lines, "\r\n"))
    if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1:
        raise ValueError("a header to an engine holds a line end")
    return text.encode("latin-1")
