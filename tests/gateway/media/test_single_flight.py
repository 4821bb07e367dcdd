"""Fetches beside one another: identical ones are one, each has its waiters, and only so many run at once."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kimi_serve.gateway.media.fetch import Fetcher
from tests.gateway.media.origin import Answer, Origin, ok, serve, trickle


def with_fetcher(
    answers: dict[str, Answer] | Answer, act: Callable[[Fetcher, Origin], Awaitable[None]], **rules: object
) -> None:
    async def run() -> None:
        async with serve(answers) as origin, Fetcher(origin.rules(**rules)) as fetcher:
            await act(fetcher, origin)

    asyncio.run(run())


def test_identical_urls_in_flight_are_fetched_once() -> None:
    async def act(fetcher: Fetcher, origin: Origin) -> None:
        bodies = await asyncio.gather(*(fetcher.fetch(origin.url()) for _ in range(20)))
        assert bodies == [b"picture"] * 20
        assert origin.connections == 1
        await fetcher.fetch(origin.url())
        assert origin.connections == 2

    async def later(head: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        await ok()(head, writer)

    with_fetcher(later, act)


def test_one_waiter_that_leaves_does_not_end_the_fetch_for_the_others() -> None:
    async def act(fetcher: Fetcher, origin: Origin) -> None:
        first, second = (asyncio.create_task(fetcher.fetch(origin.url())) for _ in range(2))
        while not origin.requests:
            await asyncio.sleep(0.01)
        first.cancel()
        assert await second == b"picture"
        assert first.cancelled()
        assert origin.connections == 1

    async def later(head: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        await ok()(head, writer)

    with_fetcher(later, act)


def test_the_last_waiter_that_leaves_ends_the_fetch() -> None:
    async def act(fetcher: Fetcher, origin: Origin) -> None:
        tasks = [asyncio.create_task(fetcher.fetch(origin.url())) for _ in range(2)]
        while not origin.requests:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.wait_for(origin.left.wait(), 3)

    with_fetcher(trickle, act)


def test_no_more_fetches_run_at_once_than_allowed() -> None:
    at_once = [0, 0]

    async def count(head: str, writer: asyncio.StreamWriter) -> None:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0.02)
        at_once[0] -= 1
        await ok()(head, writer)

    async def act(fetcher: Fetcher, origin: Origin) -> None:
        await asyncio.gather(*(fetcher.fetch(origin.url(f"/{index}")) for index in range(10)))

    with_fetcher(count, act, max_concurrent=3)
    assert at_once[1] == 3


def test_a_fetcher_that_closes_ends_its_fetches() -> None:
    async def run() -> None:
        async with serve(trickle) as origin:
            async with Fetcher(origin.rules()) as fetcher:
                task = asyncio.create_task(fetcher.fetch(origin.url()))
                while not origin.requests:
                    await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(origin.left.wait(), 3)

    asyncio.run(run())
