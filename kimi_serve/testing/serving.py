"""An ASGI application on a real socket: in a thread, or in a process of its own. Knows uvicorn; never what it serves.

    with in_thread(app) as served:          # served.url; the application is this process's own object
    with in_process("module:factory", options={"tokens": 5}) as served:

Both take a free port, return when the application answers, and leave nothing running.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, cast

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kimi_serve.errors import KimiServeError

STARTS_WITHIN_S: Final = 30.0
STOPS_WITHIN_S: Final = 10.0
_TRANSPORT: Final = "kimi_serve.transport"
_HOST: Final = "127.0.0.1"
Protocol = Callable[..., asyncio.Protocol]


@dataclass(frozen=True, slots=True)
class Served:
    port: int
    pid: int | None = None  # of a process of its own

    @property
    def url(self) -> str:
        return f"http://{_HOST}:{self.port}"


class ServingError(KimiServeError):
    """The application did not start, or did not stop."""


def transport_of(scope: Scope) -> asyncio.Transport:
    """The connection of a request, for doubles that break it; only under the servers of this module."""
    return cast("asyncio.Transport", scope[_TRANSPORT])


def run(app: ASGIApp, *, port: int = 0, listener: socket.socket | None = None, grace_s: int = 1) -> None:
    """Serves until SIGINT or SIGTERM, and then the requests in flight for grace_s."""
    with listener or _listen(port) as open_listener:
        _server(app, grace_s=grace_s).run(sockets=[open_listener])


@contextmanager
def in_thread(app: ASGIApp, *, grace_s: int = 1, protocol: Protocol | None = None) -> Iterator[Served]:
    """grace_s: how long requests in flight may go on when the block ends; then they are cancelled.

    protocol: makes what speaks HTTP on each connection; uvicorn's own, where it is None.
    """
    with _listen(0) as listener:
        server = _server(app, grace_s=grace_s, protocol=protocol)
        thread = threading.Thread(target=_run_quietly, args=(server, listener), name="served", daemon=True)
        thread.start()
        try:
            _wait(lambda: server.started, alive=thread.is_alive)
            yield Served(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(grace_s + STOPS_WITHIN_S)
    if thread.is_alive():
        raise ServingError("the application is still running")


@contextmanager
def in_process(
    factory: str,
    *,
    options: Mapping[str, object] | None = None,
    answers_at: str = "/health",
    port: int = 0,
    grace_s: int = 1,
) -> Iterator[Served]:
    """factory: `module:callable`, called with the options, which travel as JSON, in a fresh interpreter."""
    with _listen(port) as listener:
        port, number = listener.getsockname()[1], listener.fileno()
        command = [
            sys.executable,
            "-m",
            __name__,
            factory,
            "--fd",
            str(number),
            "--options",
            json.dumps(dict(options or {})),
            "--grace-s",
            str(grace_s),
        ]
        child = subprocess.Popen(command, pass_fds=(number,), stdin=subprocess.DEVNULL)
    # Our copy of the listener is closed here: connections to a killed child are refused, as a dead engine's are.
    try:
        _wait(lambda: _answers(port, answers_at), alive=lambda: child.poll() is None)
        yield Served(port, child.pid)
    finally:
        child.terminate()
        try:
            child.wait(grace_s + STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which keeps the connection to itself; a double that hangs up needs it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[_TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]


def _run_quietly(server: uvicorn.Server, listener: socket.socket) -> None:
    with suppress(SystemExit):  # how uvicorn says that the application did not start; whoever waits sees the thread end
        server.run(sockets=[listener])


def _server(app: ASGIApp, *, grace_s: int, protocol: Protocol | None = None) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=protocol or _Protocol,  # type: ignore[arg-type]  # it is called and nothing else
            ws="none",
            access_log=False,
            log_config=None,  # a library leaves its host's logging alone
            timeout_graceful_shutdown=grace_s,
        )
    )


def _listen(port: int) -> socket.socket:
    listener = socket.create_server((_HOST, port), backlog=2048)
    listener.set_inheritable(True)
    return listener


def _wait(is_ready: Callable[[], bool], alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not is_ready():
        if not alive():
            raise ServingError("the application ended before it answered")
        if time.monotonic() > deadline:
            raise ServingError(f"the application did not answer within {STARTS_WITHIN_S:g} s")
        time.sleep(0.005)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=1)
    try:
        connection.request("GET", path)
        connection.getresponse().read()
    except OSError:
        return False
    else:
        return True
    finally:
        connection.close()


def _main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m kimi_serve.testing.serving", description="Serves one ASGI application"
    )
    parser.add_argument("factory", help="module:callable")
    parser.add_argument("--fd", type=int, required=True, help="a listening socket")
    parser.add_argument("--options", type=json.loads, default={}, help="the callable's keyword arguments, as JSON")
    parser.add_argument("--grace-s", type=int, default=1, help="seconds for requests in flight after SIGTERM")
    given = parser.parse_args(arguments)
    module, _, name = given.factory.partition(":")
    app = getattr(importlib.import_module(module), name)(**given.options)
    run(app, listener=socket.socket(fileno=given.fd), grace_s=given.grace_s)


if __name__ == "__main__":
    _main(sys.argv[1:])
