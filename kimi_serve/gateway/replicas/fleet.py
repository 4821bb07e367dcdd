"""All replicas: found, watched, chosen from. Knows when to look; the rest is told by its neighbours."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import aiohttp

from kimi_serve.gateway.replicas.choose import RequestView, choose
from kimi_serve.gateway.replicas.discovery import Discovery
from kimi_serve.gateway.replicas.health import HealthTimes, check
from kimi_serve.gateway.replicas.prompt import Prompt
from kimi_serve.gateway.replicas.replica import Replica, ReplicaLimits, ReplicaSnapshot

logger = logging.getLogger(__name__)


class Fleet:
    """`on_change` hears how many requests each ready replica computes at once, None where it does not say, whenever
    that changes: admission's capacity follows it.
    """

    def __init__(
        self,
        discovery: Discovery,
        session: aiohttp.ClientSession,
        *,
        limits: ReplicaLimits | None = None,
        times: HealthTimes | None = None,
        refresh_s: float = 10.0,
        on_change: Callable[[Sequence[int | None]], None] = lambda batches: None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._discovery, self._session = discovery, session
        self._limits, self._times, self._refresh_s = limits, times or HealthTimes(), refresh_s
        self._on_change, self._clock, self._rng = on_change, clock, rng or random.Random()
        self._replicas: dict[str, Replica] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._batches: tuple[int | None, ...] = ()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks for replicas and watches them until the block ends."""
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            finder = tasks.create_task(self._find(tasks))
            try:
                yield
            except Exception as error:  # raised below: the group would wrap it
                failure = error
            finally:
                finder.cancel()
                for watcher in self._watchers.values():
                    watcher.cancel()
        if failure is not None:
            raise failure

    def choose(self, prompt: Prompt, request: RequestView) -> Replica | None:
        url = choose([replica.view(prompt) for replica in self._replicas.values()], request)
        return None if url is None else self._replicas[url]

    @property
    def ready(self) -> int:
        """How many replicas are ready."""
        return len(self._batches)

    def models(self) -> dict[str, int]:
        """What the ready replicas serve, and the longest context that one of them has for it."""
        longest: dict[str, int] = {}
        for replica in self._replicas.values():
            for name, length in replica.models.items() if replica.is_ready else ():
                longest[name] = max(length, longest.get(name, 0))
        return longest

    def snapshot(self) -> list[ReplicaSnapshot]:
        return [replica.snapshot() for replica in self._replicas.values()]

    async def _find(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            try:
                self._adopt(await self._discovery.urls(), tasks)
            except OSError as error:
                logger.warning("replicas not looked up", extra={"problem": str(error)})
            await asyncio.sleep(self._refresh_s)

    def _adopt(self, urls: frozenset[str], tasks: asyncio.TaskGroup) -> None:
        for url in self._replicas.keys() - urls:
            # Its calls hold it and end as they would have; no new one finds it.
            del self._replicas[url]
            self._watchers.pop(url).cancel()
            logger.info("replica gone", extra={"replica": url})
        for url in sorted(urls - self._replicas.keys()):
            replica = self._replicas[url] = Replica(url, self._limits, self._clock)
            self._watchers[url] = tasks.create_task(self._watch(replica))
        self._count_ready()

    async def _watch(self, replica: Replica) -> None:
        times = self._times
        while True:
            finding = await check(self._session, replica.url, times.timeout_s)
            replica.note(finding, times.unready_after)
            self._count_ready()
            await asyncio.sleep(times.interval_s * (1 + times.jitter * self._rng.uniform(-1, 1)))

    def _count_ready(self) -> None:
        batches = tuple(replica.max_running_requests for replica in self._replicas.values() if replica.is_ready)
        if batches != self._batches:
            self._batches = batches
            self._on_change(batches)
