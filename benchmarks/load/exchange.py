"""One streamed request: sends it, notes when each token comes, and leaves where it is told to. Knows HTTP and SSE.

Blocking sockets of the standard library, which locust makes cooperative: one greenlet waits, all others go on.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal
from urllib.parse import urlsplit

import gevent

from benchmarks.load.answers import Seen
from benchmarks.load.conversations import Ask
from benchmarks.load.records import Record

ROUTE: Final = "/v1/chat/completions"
_IDLE_S: Final = 15.0  # connections that were idle for longer are not used again: servers close them
_READ_BYTES: Final = 65536
_BROKEN: Final = (OSError, http.client.HTTPException)


class Left(Exception):  # noqa: N818  # nothing went wrong
    """The client leaves, as its part of the scenario says."""


class TookTooLong(Exception):  # noqa: N818
    """The scenario's timeout_s is over."""


@dataclass(frozen=True, slots=True)
class Server:
    scheme: Literal["http", "https"]
    host: str
    port: int
    prefix: str  # of every path
    key: str | None = None

    @classmethod
    def at(cls, url: str, key: str | None) -> Server:
        """url may end in /v1, as clients of OpenAI write it."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            shown = url.partition("@")[2] or url  # never a password
            raise ValueError(f"host: a URL such as http://127.0.0.1:8000 is expected, not {shown!r}")
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), prefix, key)  # type: ignore[arg-type]  # looked at above

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """Not connected yet; timeout_s is for each wait of its socket."""
        if self.scheme == "https":
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=_trusted())
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)

    def headers(self) -> dict[str, str]:
        key = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        return {"content-type": "application/json", **key}


@cache  # reading the certificates takes tens of milliseconds
def _trusted() -> ssl.SSLContext:
    return ssl.create_default_context()


class Client:
    """Keeps idle connections; any number of greenlets may ask at once."""

    def __init__(self, server: Server, timeout_s: float) -> None:
        self._server, self._timeout_s = server, timeout_s
        self._idle: list[tuple[http.client.HTTPConnection, float]] = []

    def exchange(self, ask: Ask, due_s: float, start: float) -> Record:
        """start: the run's beginning, by time.perf_counter. Whatever happens is in the record; nothing is raised."""
        seen = Seen(time.perf_counter())
        try:
            with gevent.Timeout(ask.cancel_after_s, Left), gevent.Timeout(self._timeout_s, TookTooLong):
                self._play(ask.body, seen)
        except Left:
            seen.end("cancelled")
        except (TookTooLong, TimeoutError):  # TimeoutError: the socket's own, of as many seconds
            seen.end("failed", "timeout")
        except _BROKEN as error:
            seen.end("failed", f"connection: {type(error).__name__}")
        except ValueError:
            seen.end("failed", "an answer that is no stream of chat completions")
        return Record(
            ask.number,
            ask.part,
            due_s,
            seen.began - start,
            time.perf_counter() - start,
            seen.outcome,
            seen.why,
            tuple(seen.token_s),
            seen.prompt_tokens,
            seen.answer_tokens,
            seen.retry_after_s,
        )

    def get(self, path: str) -> tuple[int, bytes]:
        connection = self._server.connection(self._timeout_s)
        try:
            connection.request("GET", self._server.prefix + path, headers=self._server.headers())
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _play(self, body: bytes, seen: Seen) -> None:
        connection, is_used = self._connection()
        try:
            response, wire = self._ask(connection, body)
        except _BROKEN:
            if not is_used:
                raise
            # The server closed it while it was idle; that is no fault of this request.
            connection = self._server.connection(self._timeout_s)
            response, wire = self._ask(connection, body)
        is_over = False
        try:
            _read(response, seen)
            is_over = response.isclosed() and not response.will_close
        finally:
            if is_over:
                self._idle.append((connection, time.perf_counter()))
            else:
                _cut(wire)
                response.close()
                connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, body: bytes
    ) -> tuple[http.client.HTTPResponse, socket.socket]:
        is_answered = False
        try:
            if connection.sock is None:
                connection.connect()
            wire = connection.sock  # taken before the answer, which takes it away where it ends the connection
            # A server that refuses a body before it has read it: its answer lies ready all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", self._server.prefix + ROUTE, body, self._server.headers())
            response = connection.getresponse()
            is_answered = True
        finally:
            if not is_answered:
                connection.close()
        return response, wire

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        while self._idle:
            connection, since = self._idle.pop()
            if time.perf_counter() - since < _IDLE_S:
                return connection, True
            connection.close()
        return self._server.connection(self._timeout_s), False


def _cut(wire: socket.socket) -> None:
    """At once, whatever still holds the file of the answer: the server has to see that its client left."""
    with suppress(OSError):  # the other side was faster
        wire.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, seen: Seen) -> None:
    if response.status != 200:
        told = response.getheader
        seen.refuse(response.status, response.read(), told("x-kimi-serve-reason"), told("retry-after"))
        return
    while chunk := response.read1(_READ_BYTES):
        seen.feed(chunk, time.perf_counter() - seen.began)
