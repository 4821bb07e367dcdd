"""One request to an engine, over pooled connections. Knows HTTP and time limits; chooses no engine, reads no answer.

Leaving `Upstream.open` before the answer is complete drops the connection, whatever state it is in: that is how an
engine learns that nobody listens any more.
"""

from __future__ import annotations

import asyncio
import errno
import io
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, Self

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from kimi_serve.gateway import liveness
from kimi_serve.protocol.errors import ApiError

Stage = Literal["connect", "headers", "body"]

_KEEP_ALIVE_S: Final = 4.0  # uvicorn, and so vLLM, closes an idle connection after 5
_SENT_AT_ONCE: Final = 1 << 20  # above it aiohttp wants a file, from which it sends in slices


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. A request that does not stream is silent while the engine works: its first_byte_s is its total_s."""

    connect_s: float = 2.0
    first_byte_s: float = 300.0  # from the request to the first byte of the answer's body; holds queueing and prefill
    between_frames_s: float = 60.0
    total_s: float = 3600.0


class UpstreamError(ApiError):
    """An engine that could not be reached, broke off or stayed silent; `stage` is what was being waited for."""

    def __init__(
        self, code: Literal["upstream_error", "upstream_timeout"], message: str, *, stage: Stage, received: bool
    ) -> None:
        super().__init__(code, message)
        self.stage: Stage = stage
        self.may_retry = not received  # no byte of an answer's body has come: another engine can give all of it


class Chunks:
    """The body as it comes, several frames at a time where several have arrived. Raises UpstreamError."""

    def __init__(self, answer: aiohttp.ClientResponse, timeouts: Timeouts, began: float) -> None:
        self._content, self._timeouts = answer.content, timeouts
        self._loop = asyncio.get_running_loop()
        # aiohttp 3.14 closes a connection whose bytes are not HTTP without a word to who reads the body.
        protocol = None if answer.connection is None else answer.connection.protocol
        self._lost = None if protocol is None else protocol.closed
        if self._lost is not None:
            self._lost.add_done_callback(self._end_where_connection_is_lost)
        self._silent_at = began + timeouts.first_byte_s
        self._ends_at = began + timeouts.total_s
        self._is_reading = False
        self._has_begun = False
        self._first: bytes | None = None
        self._ending: ApiError | None = None
        self._sleeper: asyncio.Task[object] | None = None  # who waits for the next chunk, and until when
        self._rings_at = 0.0
        self._has_rung = False
        self._waits_on = False  # the wait for this chunk was cut short, and goes on: the engine is no less silent
        self._bell: asyncio.TimerHandle | None = None
        self._timer = self._loop.call_at(min(self._silent_at, self._ends_at), self._look)

    def __aiter__(self) -> Self:
        return self

    async def begin(self) -> None:
        """Keeps the first chunk for who iterates; of an empty body, its end."""
        if self._first is not None:
            return
        try:
            self._first = await anext(self)
        except StopAsyncIteration:
            self._first = b""

    async def next_within(self, seconds: float) -> bytes | None:
        """The next chunk; None where it takes longer, and nothing is lost. Raises as iteration does, and at its end."""
        self._rings_at = self._loop.time() + seconds
        if self._bell is None or self._bell.when() > self._rings_at:
            self._ring_at(self._rings_at)
        self._sleeper = asyncio.current_task()
        try:
            return await anext(self)
        except asyncio.CancelledError:
            if self._has_rung and self._sleeper is not None and self._sleeper.uncancel() == 0:
                self._waits_on = True
                return None
            raise
        finally:
            self._sleeper, self._has_rung = None, False

    def put_back(self, read: bytes) -> None:
        """All that was read so far, to be read again."""
        self._first = read

    def end(self, error: ApiError) -> None:
        self._ending = error
        self._content.set_exception(error)

    async def __anext__(self) -> bytes:
        if self._first is not None and self._ending is None:
            first, self._first = self._first, None
            if not first:
                raise StopAsyncIteration
            return first
        if self._has_begun and not self._waits_on:  # the time that a slow client takes is not the engine's silence
            self._silent_at = self._loop.time() + self._timeouts.between_frames_s
        self._is_reading, self._waits_on = True, False
        try:
            chunk = await self._content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise self._failure(error) from error
        except ApiError:
            self.close()
            raise
        finally:
            self._is_reading = False
        if not chunk:
            self.close()
            raise StopAsyncIteration
        if not self._has_begun:
            self._has_begun = True
            self._look_again_in(self._timeouts.between_frames_s)
        return chunk

    def close(self) -> None:
        self._timer.cancel()
        if self._bell is not None:
            self._bell.cancel()
        if self._lost is not None:
            self._lost.remove_done_callback(self._end_where_connection_is_lost)

    def _end_where_connection_is_lost(self, lost: asyncio.Future[None]) -> None:
        cause = lost.exception()
        if not self._content.is_eof() and self._content.exception() is None:
            self._content.set_exception(aiohttp.ClientPayloadError(f"the body is not complete: {cause}"))

    def _look(self) -> None:
        """One timer a response, which finds that its limit has moved on, is cheaper than one a chunk."""
        now = self._loop.time()
        if now >= self._ends_at or (self._is_reading and now >= self._silent_at):
            self._content.set_exception(TimeoutError())
        else:
            self._look_again_in(self._silent_at - now if self._is_reading else self._timeouts.between_frames_s)

    def _ring(self) -> None:
        """Wakes who waits by a cancellation, which costs a wait that is not cut short nothing: no task, no timer."""
        self._bell = None
        if self._sleeper is None:
            return
        if self._loop.time() < self._rings_at:
            self._ring_at(self._rings_at)
        else:
            self._has_rung = True
            self._sleeper.cancel()

    def _ring_at(self, when: float) -> None:
        if self._bell is not None:
            self._bell.cancel()
        self._bell = self._loop.call_at(when, self._ring)

    def _look_again_in(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_at(min(self._loop.time() + seconds, self._ends_at), self._look)

    def _failure(self, error: Exception) -> UpstreamError:
        self.close()
        if isinstance(error, TimeoutError):
            limit = "between_frames_s" if self._has_begun else "first_byte_s"
            if self._loop.time() >= self._ends_at:
                limit = "total_s"
            return _timeout(limit, self._timeouts, "body", received=self._has_begun)
        message = "the engine broke off its answer; send the request again"
        return UpstreamError("upstream_error", message, stage="body", received=self._has_begun)


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    headers: CIMultiDictProxy[str]
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


class Upstream:
    """The connections of one process to all its engines."""

    def __init__(
        self,
        timeouts: Timeouts | None = None,
        *,
        connections: int = 0,
        connections_per_engine: int = 0,
        unreachable_s: float = 30.0,
    ) -> None:
        """Must be made inside the event loop. 0 connections: as many as admission lets through."""

        def open_socket(info: aiohttp.AddrInfoType) -> socket.socket:
            family, kind, protocol, _, _ = info
            opened = socket.socket(family, kind, protocol)
            liveness.watch(opened, unreachable_s)
            return opened

        self._timeouts = Timeouts() if timeouts is None else timeouts
        self._unreachable_s = unreachable_s
        connector = aiohttp.TCPConnector(
            limit=connections,
            limit_per_host=connections_per_engine,
            keepalive_timeout=_KEEP_ALIVE_S,
            socket_factory=open_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def open(
        self,
        base_url: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        timeouts: Timeouts | None = None,
    ) -> AsyncIterator[Response]:
        """POSTs the body (GETs without one), sends no header that is not given but Host and the body's length.

        Raises UpstreamError; a status is never an error here.
        """
        limits = timeouts or self._timeouts
        began = asyncio.get_running_loop().time()
        answer = await self._ask(base_url + path, body, headers, limits)
        chunks = Chunks(answer, limits, began)
        try:
            yield Response(answer.status, answer.headers, chunks)
        finally:
            chunks.close()
            _let_go(answer)

    async def _ask(
        self, url: str, body: bytes | None, headers: Mapping[str, str], limits: Timeouts
    ) -> aiohttp.ClientResponse:
        data = io.BytesIO(body) if body is not None and len(body) > _SENT_AT_ONCE else body
        try:
            async with asyncio.timeout(min(limits.first_byte_s, limits.total_s)):
                return await self._session.request(
                    "GET" if body is None else "POST",
                    URL(url, encoded=True),
                    data=data,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, connect=limits.connect_s, sock_connect=limits.connect_s),
                )
        except aiohttp.ConnectionTimeoutError as error:
            raise _timeout("connect_s", limits, "connect", received=False) from error
        except TimeoutError as error:
            raise _timeout("first_byte_s", limits, "headers", received=False) from error
        except aiohttp.ClientConnectorError as error:
            raise UpstreamError(
                "upstream_error", "the engine takes no connection", stage="connect", received=False
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
                message = f"the engine's machine took nothing for unreachable_s = {self._unreachable_s:g} s"
                raise UpstreamError("upstream_timeout", message, stage="headers", received=False) from error
            message = "the engine hung up before it answered; send the request again"
            raise UpstreamError("upstream_error", message, stage="headers", received=False) from error


def _let_go(answer: aiohttp.ClientResponse) -> None:
    """Returns the connection of a complete answer to the pool; drops every other at once, unsent bytes and all."""
    connection = answer.connection
    if connection is None:  # aiohttp has taken it back with the last byte
        return
    if not answer.content.is_eof() and connection.transport is not None:
        connection.transport.abort()
    answer.close()


def _timeout(limit: str, limits: Timeouts, stage: Stage, *, received: bool) -> UpstreamError:
    seconds: float = getattr(limits, limit)
    message = f"the engine was silent for longer than {limit} = {seconds:g} s"
    if limit == "total_s":
        message = f"the answer took longer than {limit} = {seconds:g} s"
    return UpstreamError("upstream_timeout", message, stage=stage, received=received)
