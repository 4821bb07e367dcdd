"""Gateways to be killed: each a process, forked from one that has loaded everything, so that it starts at once."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx

from kimi_serve.gateway import run
from kimi_serve.gateway.settings import read

STARTS_IN = 300.0  # seconds; it takes one on an idle machine

_nursery = multiprocessing.get_context("forkserver")
_nursery.set_forkserver_preload(["kimi_serve.gateway.run"])


@contextmanager
def gateway(log: Path, port: int, **settings: Any) -> Iterator[BaseProcess]:
    """Ready when the block begins; killed at its end, if it was not within it."""
    process = _nursery.Process(target=_serve, args=(log, {**settings, "listen": {"port": port, "settle_s": 0}}))
    process.start()
    try:
        deadline = time.monotonic() + STARTS_IN
        while not _is_ready(port):
            assert process.is_alive(), log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        yield process
    finally:
        kill(process)


def kill(process: BaseProcess) -> None:
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def _serve(log: Path, settings: dict[str, Any]) -> None:
    with log.open("ab") as sink:
        os.dup2(sink.fileno(), 2)
    sys.exit(run.run(read(None, **settings)))


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False
