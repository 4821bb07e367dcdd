"""A redis-server of our own, on a port and in a folder of its own, that tests may kill. Knows no script."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from kimi_serve.gateway.tenants.resp import Redis

PASSWORD = "a pass/word:with@signs"


class Server:
    def __init__(self, folder: Path, options: Sequence[str] = (), port_option: str = "--port") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = folder
        ports = ["--port", "0", port_option, str(self.port)] if port_option != "--port" else ["--port", str(self.port)]
        self._options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", PASSWORD]
        self._options += [*ports, *options]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(["redis-server", *self._options], cwd=self._folder, stdout=subprocess.DEVNULL)
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    @contextmanager
    def hung(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def client(self, timeout: float = 5.0) -> Redis:
        return Redis("127.0.0.1", self.port, password=PASSWORD, timeout=timeout)

    def url(self) -> str:
        return f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/0"

    def wipe(self) -> None:
        async def flush() -> None:
            client = self.client()
            await client.call("FLUSHALL")
            await client.call("SCRIPT", "FLUSH")
            await client.aclose()

        asyncio.run(flush())

    def ready(self) -> Server:
        """It runs, and remembers nothing."""
        if self.process.poll() is not None:
            self.start()
        self.wipe()
        return self


@contextmanager
def redis_server(folder: Path) -> Iterator[Server]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: shared limits are not tested here")
    server = Server(folder)
    try:
        yield server
    finally:
        server.kill()
