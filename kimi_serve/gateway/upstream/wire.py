"""One HTTP/1.1 connection to an engine, a request at a time. Knows bytes and framing; no clock and no limit of time.

A general client wakes a task for every piece of an answer. Here who waits may leave word what to do with the next ones
(`divert`), and most of a stream then passes in the callback that the bytes came with.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Final

import httptools

from kimi_serve.errors import KimiServeError

Take = Callable[[bytes], bool]

_MOST_HEADER: Final = 64 << 10  # bytes
_MOST_UNREAD: Final = 128 << 10  # bytes; then the engine has to wait for who reads
_JOINED: Final = 64 << 10  # bytes of a body that are copied behind its header rather than sent for themselves
_BODILESS: Final = (204, 304)


class WireError(KimiServeError):
    """What came is not HTTP, or ended too early."""


class Wire(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._divert: Take | None = None
        self._came: list[bytes] = []  # of the body, with the bytes that are being parsed
        self._unread: list[bytes] = []
        self._unread_size = 0
        self._is_paused = False
        self._is_asked = False
        self._ends_with_connection = False
        self._may_stay = False
        self._header_size = 0
        self.status = 0
        self.headers: dict[str, str] = {}  # by lower-case name
        self.is_headed = False  # the answer's header has come
        self.is_over = False  # the answer's last byte has
        self.error: Exception | None = None  # why no more will come
        self.is_open = True
        self.rests_since = 0.0  # for the pool that it rests in

    def ask(self, head: bytes, body: Sequence[bytes]) -> None:
        """Sends a request; the one before must be over."""
        assert not self._is_asked
        self._is_asked, self.is_headed, self.is_over = True, False, False
        self.status, self.headers, self._header_size, self._ends_with_connection = 0, {}, 0, False
        if sum(map(len, body)) <= _JOINED:
            self.transport.write(b"".join((head, *body)))
        else:
            self.transport.writelines((head, *body))

    async def wait(self) -> None:
        """Until something is new. Whoever is cancelled has lost nothing."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def divert(self, take: Take | None) -> None:
        """While somebody waits, pieces are offered to `take`, and what it takes (True) does not wake who waits."""
        self._divert = take

    @property
    def has_unread(self) -> bool:
        return bool(self._unread)

    def take(self) -> bytes:
        """All that has come and was not read."""
        chunk = self._unread[0] if len(self._unread) == 1 else b"".join(self._unread)
        self._unread, self._unread_size = [], 0
        if self._is_paused and self.is_open:
            self._is_paused = False
            self.transport.resume_reading()
        return chunk

    def rest(self) -> bool:
        """Whether it can be asked again; where not, it is dropped at once, unsent bytes and all."""
        self._divert, self._unread, self._unread_size = None, [], 0
        is_sound = self.is_open and self.is_over and self._may_stay
        if not is_sound or self._is_paused or self.transport.get_write_buffer_size():
            self.transport.abort()
            self.is_open = False
            return False
        self._is_asked = False
        return True

    def close(self) -> None:
        """From rest."""
        self.is_open = False
        self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._is_asked or self.is_over:
            self._fail(WireError("it spoke unasked"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(WireError(f"what it sent is not HTTP/1.1: {error}"))
        if self._came:
            chunk = self._came[0] if len(self._came) == 1 else b"".join(self._came)
            self._came = []
            self._hand_on(chunk)
        elif self.is_headed:
            self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._is_asked and not self.is_over:
            if exc is None and self.is_headed and self._ends_with_connection:
                self.is_over = True
            elif self.error is None:
                self.error = exc or WireError("it closed the connection before the answer's end")
        self.wake()

    def on_message_begin(self) -> None:
        if self.is_over:
            raise WireError("it answered twice")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_headed:  # trailers
            return
        self._header_size += len(name) + len(value)
        if self._header_size > _MOST_HEADER:
            raise WireError(f"its header exceeds {_MOST_HEADER} bytes")
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return  # not the answer yet: see below
        self.is_headed, self._may_stay = True, self._parser.should_keep_alive()  # by the end it has forgotten
        is_framed = "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower()
        self._ends_with_connection = not is_framed and self.status not in _BODILESS

    def on_body(self, body: bytes) -> None:
        self._came.append(body)

    def on_message_complete(self) -> None:
        if self.is_headed:
            self.is_over = True
        else:
            self.headers, self._header_size = {}, 0

    def _hand_on(self, chunk: bytes) -> None:
        is_awaited = self._waiter is not None and not self._waiter.done() and not self._unread
        if self._divert is not None and is_awaited and self._divert(chunk):
            if self.is_over or self.error is not None:
                self.wake()
            return
        self._unread.append(chunk)
        self._unread_size += len(chunk)
        if self._unread_size > _MOST_UNREAD and not self._is_paused and not self.is_over and self.is_open:
            self._is_paused = True
            self.transport.pause_reading()
        self.wake()

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self.is_open = False
        self.transport.abort()
        self.wake()


async def connect(host: str, port: int, tls: ssl.SSLContext | None) -> Wire:
    _, wire = await asyncio.get_running_loop().create_connection(Wire, host, port, ssl=tls)
    return wire
