"""One client's connection: the limits that uvicorn does not have. Knows bytes and timers; no route, no body.

uvicorn parses HTTP and runs the application. It waits without end for a header and for a client that does not read,
keeps headers of any size, and forgets the request that runs when its client leaves with another one in the pipeline.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, Final

import httptools
from starlette.types import Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from kimi_serve.gateway import liveness
from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.settings import Listen
from kimi_serve.gateway.streaming import ClientGoneError, current_client
from kimi_serve.protocol.errors import ApiError

_LINGER_S: Final = 1.0  # for a client to read why; closed at once, a connection with bytes unread is reset
_EACH_HEADER: Final = 32  # bytes that one costs besides its own
_PIPELINED: Final = 4  # requests that are read while one runs; up to here a client that leaves is noticed


class OnConnection:
    """The client of one request."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self.send: Send = cycle.send  # type: ignore[assignment]  # uvicorn names each message a type
        self._left: Callable[[], None] | None = None
        self._take: Callable[[bytes], None] | None = None
        self._all: asyncio.Future[None] | None = None  # of the body

    @property
    def has_left(self) -> bool:
        return self._cycle.disconnected

    def watch(self, left: Callable[[], None] | None) -> None:
        self._left = left
        if left is not None:
            self._cycle.flow.resume_reading()  # a connection that is not read from cannot be seen to close

    def leave(self) -> None:
        if self._all is not None and not self._all.done():
            self._all.set_exception(ClientGoneError())
        left, self._left = self._left, None  # said once: to be cancelled twice is another thing
        if left is not None:
            left()

    @property
    def has_sent_all(self) -> bool:
        return not self._cycle.more_body

    async def rest_of_body(self, take: Callable[[bytes], None]) -> None:
        """A body of megabytes comes in pieces, and none of them wakes a task."""
        cycle = self._cycle
        if cycle.body:
            take(bytes(cycle.body))
            cycle.body = bytearray()
        if cycle.disconnected:
            raise ClientGoneError
        if not cycle.more_body:
            return
        self._take, self._all = take, asyncio.get_running_loop().create_future()
        cycle.flow.resume_reading()
        try:
            await self._all
        finally:
            self._take = self._all = None

    def takes(self, part: bytes) -> bool:
        """Whether a part of the body is waited for here."""
        if self._take is None or self._all is None or self._all.done():
            return False
        try:
            self._take(part)
        except ApiError as error:
            self._all.set_exception(error)
        return True

    def finish(self) -> None:
        if self._all is not None and not self._all.done():
            self._all.set_result(None)

    @property
    def is_reading(self) -> bool:
        return not self._cycle.flow.write_paused

    @property
    def has_room(self) -> bool:
        cycle = self._cycle
        return bool(cycle.chunked_encoding) and not (cycle.flow.write_paused or cycle.disconnected)

    def write(self, part: bytes) -> None:
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(part), part))


class Connection(HttpToolsProtocol):
    def __init__(
        self,
        limits: Listen,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._metrics: Metrics = app_state["gateway"].metrics
        self._running: RequestResponseCycle | None = None
        self._client: OnConnection | None = None  # of what runs
        self._refusal: ApiError | None = None
        self._is_in_header = True  # or before it
        self._has_progressed = False  # in parsing the last bytes: a header or a piece of a body came to its end
        self._unfinished = 0  # bytes since then
        self._bytes = b""  # that are being parsed
        self._is_resuming = False
        self._has_parted = False
        self._unsent = 0
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._metrics.connections.inc()
        if len(self.connections) > self._limits.connections:
            message = f"{self._limits.connections} connections are open, the most that are taken; retry later"
            self._refuse(ApiError("too_many_connections", message, retry_after=1.0))
        else:
            self._header_timer = self.loop.call_later(self._limits.header_s, self._header_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._metrics.connections.dec()
        for timer in (self._header_timer, self._stall_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        self._disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._has_parted:
            return
        self._has_progressed, self._bytes = False, data
        super().data_received(data)
        self._bytes = b""
        self._unfinished = 0 if self._has_progressed else self._unfinished + len(data)
        if self._unfinished > self._limits.header_bytes:
            self._refuse(_too_large(self._limits))
        elif self._is_in_header and self._header_timer is None and not self._is_answering():
            self._header_timer = self.loop.call_later(self._limits.header_s, self._header_is_late)

    def on_message_begin(self) -> None:
        if not self._is_resuming:
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_header:  # behind a chunked body come trailers, which nobody here reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_resuming:
            return
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        self._is_in_header, self._has_progressed = False, True
        self._require_header()
        super().on_headers_complete()
        if 0 < len(self.pipeline) <= _PIPELINED:
            self.flow.resume_reading()  # a connection that is not read from cannot be seen to close

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        if self._client is None or self.cycle is not self._running or not self._client.takes(body):
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it is not complete: see below
        super().on_message_complete()
        if self._client is not None and self.cycle is self._running:
            self._client.finish()
        self._is_in_header = self._has_progressed = True

    def _unsupported_upgrade_warning(self) -> None:
        """A client offers another protocol, as Java's does each time, and nobody takes it up.

        httptools believes that the other protocol begins here: its parser is done, and has skipped the body.
        """
        upgrade = sys.exception()
        assert isinstance(upgrade, httptools.HttpParserUpgrade)
        rest = self._bytes[upgrade.args[0] :]
        framing = [line for line in self.headers if line[0] in (b"content-length", b"transfer-encoding")]
        lines = b"".join(b"%s: %s\r\n" % line for line in framing)
        self.parser = httptools.HttpRequestParser(self)
        self._is_resuming = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % lines)  # its framing has been found valid once
        self._is_resuming = False
        if rest:
            self.data_received(rest)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running, self._client = cycle, OnConnection(cycle)
        token = current_client.set(self._client)
        super()._start_asgi_task(cycle, app)  # in a task, which takes the context of now
        current_client.reset(token)

    def send_400_response(self, msg: str) -> None:
        """The parser, or one of the callbacks above, cannot go on."""
        unreadable = "the bytes are not HTTP/1.1; check the lines of the header, the body's length and its chunks"
        self._refuse(self._refusal or ApiError("invalid_http", unreadable))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = liveness.unsent_bytes(self.transport)
        self._stall_timer = self.loop.call_later(self._limits.stall_s, self._look_for_stall)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the last answer was not read in all this time: it would be waited for without end
        else:
            super().timeout_keep_alive_handler()

    def _require_header(self) -> None:
        """Raises into the parser, which then hears of no more."""
        size = len(self.url) + sum(len(name) + len(value) + _EACH_HEADER for name, value in self.headers)
        if size > self._limits.header_bytes:
            self._refusal = _too_large(self._limits)
        elif (version := self.parser.get_http_version()) not in ("1.0", "1.1"):
            self._refusal = ApiError("invalid_http", f"HTTP/{version} is not spoken here; use HTTP/1.1")
        elif version == "1.1" and sum(name == b"host" for name, _ in self.headers) != 1:
            self._refusal = ApiError("invalid_http", "Host: expected exactly one, as HTTP/1.1 wants it")
        if self._refusal is not None:
            raise self._refusal

    def _header_is_late(self) -> None:
        self._header_timer = None
        if not self._unfinished:
            self.transport.close()  # nothing was asked
            return
        message = f"the header did not arrive within {self._limits.header_s:g} seconds"
        self._refuse(ApiError("header_timeout", message))

    def _look_for_stall(self) -> None:
        before, self._unsent = self._unsent, liveness.unsent_bytes(self.transport)
        if self._unsent < before:  # slow, but alive
            self._stall_timer = self.loop.call_later(self._limits.stall_s, self._look_for_stall)
        else:
            self._metrics.stalled.inc()
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answers without the application, and closes once the client had the time to read it."""
        if self.transport.is_closing():
            return
        self._metrics.refusals.labels(error.code).inc()
        if self._is_answering() and self._running is not None and self._running.response_started:
            self.transport.abort()  # a second status line would pass for a part of the answer
            return
        self.transport.write(_response(error))
        self._disconnect()
        self._has_parted = True
        self.flow.resume_reading()
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(_LINGER_S, self.transport.abort)

    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _disconnect(self) -> None:
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
            if self._client is not None:
                self._client.leave()


def _too_large(limits: Listen) -> ApiError:
    return ApiError("header_too_large", f"the header exceeds {limits.header_bytes} bytes; send less of it")


def _response(error: ApiError) -> bytes:
    body = json.dumps(error.envelope()).encode()
    told = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    lines = [f"{name}: {value}\r\n".encode() for name, value in (told | error.headers()).items()]
    return b"".join((STATUS_LINE[error.status], *lines, b"\r\n", body))
