"""Engines, gateways and stores as processes that can be killed, stopped and started. Knows no traffic, no fault."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Final, Protocol

from kimi_serve.launch.up import free_port
from kimi_serve.testing.serving import in_process
from tests.gateway.faults.conftest import Door
from tests.gateway.faults.wires import Wire
from tests.gateway.tenants.postgres_server import PostgresServer
from tests.gateway.tenants.redis_server import Server as RedisServer

FAKE: Final = "kimi_serve.testing.fake_engine:create"
ENDS_WITHIN_S: Final = 60


class Part(Protocol):
    """Over its wire, where it has one, the others reach it."""

    wire: Wire | None

    def kill(self) -> None: ...

    def leave(self) -> None:
        """As it is asked to, when it has done what it had to."""

    def start(self) -> None:
        """At the same place again; returns when it answers."""

    def hold(self) -> None:
        """It is there, and does nothing."""

    def go_on(self) -> None: ...


class Engine:
    """A fake engine of our own."""

    def __init__(self, dials: Mapping[str, object], stack: ExitStack) -> None:
        self.wire: Wire | None = None
        self._dials, self._run = dials, stack.enter_context(ExitStack())
        self._served = self._run.enter_context(in_process(FAKE, options=dials, grace_s=ENDS_WITHIN_S))

    @property
    def url(self) -> str:
        return self._served.url

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._run.close()

    def leave(self) -> None:
        self._run.close()

    def start(self) -> None:
        again = in_process(FAKE, options=self._dials, port=self._served.port, grace_s=ENDS_WITHIN_S)
        self._served = self._run.enter_context(again)

    def hold(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._served.pid is not None
        os.kill(self._served.pid, number)


class FarEngine:
    """One that somebody else runs: only the wire to it is ours."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.wire: Wire | None = None

    def _is_not_ours(self) -> None:
        raise AssertionError("an engine that was not started here is neither stopped nor ended here")

    kill = leave = start = hold = go_on = _is_not_ours


class Gateway:
    def __init__(self, opened: Callable[[int], AbstractContextManager[Door]], stack: ExitStack) -> None:
        self.wire: Wire | None = None
        self.died = (0.0, 0.0)  # the last time: from the signal until its sockets were closed
        self._opened, self._run = opened, stack.enter_context(ExitStack())
        self._earlier_retries = 0.0
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        """For clients."""
        return f"http://127.0.0.1:{self.port if self.wire is None else self.wire.port}"

    @property
    def retries(self) -> int:
        """Requests that it sent to a second engine, over all its lives."""
        return int(self._earlier_retries + self._door.metric("retries_total"))

    @property
    def ready_engines(self) -> int:
        return int(self._door.metric("ready_replicas"))

    def kill(self) -> None:
        self._earlier_retries = self.retries
        began = time.monotonic()
        self._door.process.kill()
        self._door.process.wait()
        self.died = (began, time.monotonic())
        self._run.close()

    def leave(self) -> None:
        self._earlier_retries = self.retries
        self._door.process.send_signal(signal.SIGTERM)
        self._door.process.wait(2 * ENDS_WITHIN_S)
        self._run.close()

    def start(self) -> None:
        self._door = self._run.enter_context(self._opened(self.port))

    def hold(self) -> None:
        self._door.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._door.process.send_signal(signal.SIGCONT)


class Store:
    """Redis or PostgreSQL."""

    def __init__(self, server: RedisServer | PostgresServer, asks_to_leave: signal.Signals) -> None:
        self.wire: Wire | None = None
        self._server, self._asks_to_leave = server, asks_to_leave
        self._held = ExitStack()

    def reached(self, url: str) -> str:
        """The URL of something in it, over the wire."""
        return url if self.wire is None else url.replace(f":{self._server.port}/", f":{self.wire.port}/")

    @property
    def port(self) -> int:
        return self._server.port

    def kill(self) -> None:
        self._server.kill()

    def leave(self) -> None:
        self._server.process.send_signal(self._asks_to_leave)
        self._server.process.wait(ENDS_WITHIN_S)

    def start(self) -> None:
        self._server.start()

    def hold(self) -> None:
        self._held.enter_context(self._server.hung())

    def go_on(self) -> None:
        self._held.close()
