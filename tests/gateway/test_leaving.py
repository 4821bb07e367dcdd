"""Who hears that the grace time is over, and who does not."""

import asyncio

import pytest

from kimi_serve.gateway.leaving import Leaving
from kimi_serve.protocol.errors import ApiError


def test_work_under_way_ends_with_draining_and_what_is_done_hears_nothing() -> None:
    async def leave() -> tuple[list[object], int]:
        leaving = Leaving()
        assert await leaving.bounded(asyncio.sleep(0, "done")) == "done"
        working = [asyncio.create_task(leaving.bounded(asyncio.sleep(60))) for _ in range(3)]
        await asyncio.sleep(0)
        told = leaving.end_all()
        return await asyncio.gather(*working, return_exceptions=True), told

    ended, told = asyncio.run(leave())
    assert told == 3
    assert [error.code for error in ended if isinstance(error, ApiError)] == ["draining"] * 3


def test_a_cancellation_of_anothers_stays_one() -> None:
    async def cancel() -> None:
        leaving = Leaving()
        task = asyncio.create_task(leaving.bounded(asyncio.sleep(60)))
        await asyncio.sleep(0)
        leaving.end_all()
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


def test_a_listener_hears_nothing_once_its_block_is_over() -> None:
    heard: list[str] = []
    leaving = Leaving()
    with leaving.telling(lambda: heard.append("first")):
        assert leaving.end_all() == 1
    assert leaving.end_all() == 0
    assert heard == ["first"]
