"""The gateway's process: listens, and leaves in order. Knows uvicorn and signals; no route."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Final

import uvicorn

from kimi_serve.errors import ConfigError
from kimi_serve.gateway import liveness, logs
from kimi_serve.gateway.app import create_app
from kimi_serve.gateway.connection import Connection
from kimi_serve.gateway.gateway import Gateway, discovery
from kimi_serve.gateway.settings import Settings
from kimi_serve.gateway.tracing import require_packages

_LOOKS_EVERY_S: Final = 0.05
_LAST_WORDS_S: Final = 2.0  # for error events to go out once the grace time is over
_SEND_BUFFER: Final = 256 << 10  # bytes a connection; else a client that does not read takes megabytes of the kernel's
_YOUNG: Final = 10_000  # objects that are new before the collector looks; few are ever part of a cycle
_CLOSE: Final = (b"connection", b"close")
_OTHER_FILES: Final = 512  # besides connections of clients, each of which has one to an engine

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Leaves in order: first it says so, then it is deaf to what is new, then it ends what is left."""

    gateway: Gateway | None = None
    settles = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second signal is meant: nothing is waited for. A person's Ctrl-C has no load balancer to wait for."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.settles = sig == signal.SIGTERM
        if self.gateway is not None:
            self.gateway.leaving.announce()
        if not self.force_exit:
            # No answer from now on invites to a next request: for what connections hold, and what is made every second.
            self.server_state.default_headers.append(_CLOSE)
            self.config.encoded_headers.append(_CLOSE)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert self.gateway is not None
        for server in self.servers:
            for listener in server.sockets:
                # Connection ends a client that takes nothing, and counts it. This is for what it cannot see.
                liveness.watch(listener, 2 * self.gateway.settings.listen.stall_s)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        gateway = self.gateway
        assert gateway is not None
        listen = gateway.settings.listen
        logger.info("leaving", extra={"connections": len(self.server_state.connections)})
        await self._wait(listen.settle_s if self.settles else 0.0, lambda: False)
        for server in self.servers:
            server.close()
        gateway.admission.drain(refuse_waiting=False)
        self._let_go()
        await self._wait(listen.grace_s, self._is_alone)
        ended = gateway.leaving.end_all()
        await self._wait(_LAST_WORDS_S, self._is_alone)
        logger.info("left", extra={"ended": ended, "cut": len(self.server_state.connections)})
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)

    def _let_go(self) -> None:
        """Of idle connections now, of the others with the end of their answer."""
        for connection in list(self.server_state.connections):
            connection.shutdown()

    def _is_alone(self) -> bool:
        return not self.server_state.connections and not self.server_state.tasks

    async def _wait(self, seconds: float, is_over: Callable[[], bool]) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not is_over() and not self.force_exit:
            await asyncio.sleep(min(_LOOKS_EVERY_S, max(0.0, ends - time.monotonic())))


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT. Raises ConfigError before it listens."""
    if settings.checkpoint is None or not (settings.checkpoint / "tiktoken.model").is_file():
        raise ConfigError(f"checkpoint: {settings.checkpoint} holds no tiktoken.model; expected a Kimi-VL folder")
    discovery(settings)
    require_packages(settings.tracing)
    logs.to_stderr()
    _raise_open_files(settings.listen.connections)

    def opened(gateway: Gateway) -> None:
        server.gateway = gateway
        # What stays for good, modules and the tokenizer above all, is not looked through again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG)

    server = Server(
        uvicorn.Config(
            create_app(settings, opened),
            host=settings.listen.host,
            port=settings.listen.port,
            log_config=None,
            access_log=False,
            http=partial(Connection, settings.listen),  # type: ignore[arg-type]  # it is called and nothing else
            ws="none",
            loop="uvloop",
            lifespan="on",
            server_header=False,
            proxy_headers=False,  # nobody here asks where a client is
            timeout_keep_alive=settings.listen.keep_alive_s,  # type: ignore[arg-type]  # of a timer: fractions are fine
            timeout_graceful_shutdown=1,  # by then all connections are closed
        )
    )
    server.run()
    return 0 if server.started else 1


def _raise_open_files(connections: int) -> None:
    """Without a free file a connection to a sound engine fails, and the engine would be blamed."""
    needed = 2 * connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            message = f"listen.connections: {connections} need {needed} open files, and {allowed} are allowed"
            logger.warning("%s; raise the limit, or lower the setting", message)
