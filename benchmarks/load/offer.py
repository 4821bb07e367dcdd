"""The open loop: requests start when they are due, whatever became of those before. Knows moments, no contents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import gevent
from gevent.pool import Group
from gevent.queue import Queue

from benchmarks.load.conversations import Ask
from benchmarks.load.records import Record

AHEAD: Final = 32  # requests that lie ready
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Offered:
    started: int
    unstarted: int  # due while as many were open as may be


def offer(
    due: Iterable[float],
    asks: Iterator[Ask],
    exchange: Callable[[Ask, float, float], Record],
    note: Callable[[Record], None],
    most_open: int,
    begun: Callable[[float], None] = lambda start: None,
) -> Offered:
    """Returns when the last request has ended, of which each has its own timeout.

    most_open bounds this client's memory and sockets. What it keeps from starting is counted, never put off: a server
    that answers slowly must not be asked less. `begun` is told the clock of the first moment.
    """
    open_: Group = Group()
    started = unstarted = 0
    ready = _ahead(asks)
    start = time.perf_counter()
    begun(start)
    try:
        for at, ask in zip(due, ready, strict=False):
            gevent.sleep(max(0.0, start + at - time.perf_counter()))
            if len(open_) >= most_open:
                unstarted += 1
                continue
            started += 1
            open_.spawn(lambda ask=ask, at=at: note(exchange(ask, at, start)))
        open_.join()
    finally:
        open_.kill()
    return Offered(started, unstarted)


def _ahead(asks: Iterator[Ask]) -> Iterator[Ask]:
    """The same requests, read ahead by another greenlet; the first ones lie ready when this returns."""
    waiting: Queue = Queue(maxsize=AHEAD)

    def fill() -> None:
        try:
            for ask in asks:
                waiting.put(ask)
        finally:
            waiting.put(None)

    filler = gevent.spawn(fill)
    while not waiting.full() and not filler.ready():
        gevent.sleep(_POLL_S)

    def read() -> Iterator[Ask]:
        try:
            while (ask := waiting.get()) is not None:
                yield ask
            filler.get()  # raises what ended it early
        finally:
            filler.kill()

    return read()
