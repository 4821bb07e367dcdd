"""How the gateway leaves: announced, then at an end. Knows who wants to hear of the end; ends nothing itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

from kimi_serve.protocol.errors import ApiError

T = TypeVar("T")


class Leaving:
    def __init__(self) -> None:
        self.is_announced = False  # /readyz says so; requests are still taken until admission drains
        self._listeners: set[Callable[[], None]] = set()

    def announce(self) -> None:
        self.is_announced = True

    def end_all(self) -> int:
        """The grace time is over: everything under way hears of it. Returns how many that are."""
        listeners = list(self._listeners)
        for end in listeners:
            end()
        return len(listeners)

    @contextmanager
    def telling(self, end: Callable[[], None]) -> Iterator[None]:
        """`end` is called, while the block lasts, when the grace time is over."""
        self._listeners.add(end)
        try:
            yield
        finally:
            self._listeners.discard(end)

    async def bounded(self, work: Coroutine[object, object, T]) -> T:
        """Awaits the work; raises ApiError `draining` where the grace time is over first."""
        task = asyncio.current_task()
        assert task is not None
        is_over = False

        def end() -> None:
            nonlocal is_over
            is_over = True
            task.cancel()

        self._listeners.add(end)
        try:
            return await work
        except asyncio.CancelledError:
            if is_over and task.uncancel() == 0:
                raise draining() from None
            raise
        finally:
            self._listeners.discard(end)


def draining() -> ApiError:
    return ApiError("draining", "The gateway is shutting down; send the request again.", retry_after=1.0)
