"""Two gateways that count in one Redis, and what they do when it is killed while they answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.tenants.charge import charge
from kimi_serve.gateway.tenants.limits import Limits
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.tenants.redis_server import Server
from tests.gateway.tenants.test_redis import gateway, key_of
from tests.gateway.test_gateway import HELLO
from tests.gateway.test_key_stores import SALT, metric
from tests.gateway.test_tenants import made
from tests.waiting import eventually


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def settings(file: Path, redis: Server, **more: object) -> dict[str, object]:
    return {"file": str(file), "redis": redis.url(), "salt_secret": SALT, "redis_timeout_s": 1.0, **more}


@contextmanager
def streaming(front: Front, header: dict[str, str]) -> Iterator[httpx.Response]:
    body = {"model": MODEL, "messages": HELLO, "stream": True, "max_tokens": 100}
    with front.http.stream("POST", "/v1/chat/completions", json=body, headers=header) as response:
        yield response


def running_of(redis: Server) -> int:
    """Requests that run, as Redis counts them."""

    async def ask() -> int:
        client = redis.client()
        found = await client.call("KEYS", "*:running")
        assert isinstance(found, list)
        counts = [await client.call("ZCARD", str(name)) for name in found]
        await client.aclose()
        return sum(count for count in counts if isinstance(count, int))

    return asyncio.run(ask())


def test_two_gateways_grant_a_keys_limit_once_between_them(start: Start, file: Path, redis: Server) -> None:
    header = made(file, "acme", "--requests-per-minute", "4")
    fronts = [start(keys=settings(file, redis)) for _ in range(2)]
    statuses = [front.chat("x", headers=header).status_code for _ in range(3) for front in fronts]
    assert sorted(statuses) == [200, 200, 200, 200, 429, 429]
    assert [metric(front, "kimi_serve_limits_shared") for front in fronts] == [1, 1]


def test_a_redis_killed_while_both_answer_fails_no_request_and_is_used_again(
    start: Start, file: Path, redis: Server
) -> None:
    header = made(file, "acme", "--concurrent-requests", "10")
    fronts = [start(keys=settings(file, redis), dials={"tokens": 40, "itl_s": 0.05}) for _ in range(2)]
    with ExitStack() as stack:
        streams = [stack.enter_context(streaming(front, header)) for front in fronts]
        assert running_of(redis) == 2
        redis.kill()
        for front in fronts:  # meanwhile others come, and are counted where they are
            assert front.chat("x", headers=header).status_code == 200
        for stream in streams:
            assert stream.read().rstrip().endswith(b"data: [DONE]")
    for front in fronts:
        assert metric(front, "kimi_serve_limit_fallbacks_total") == 1
        assert metric(front, "kimi_serve_limits_shared") == 0
        # What ended while Redis was away waits to be settled, and is not lost.
        eventually(lambda front=front: metric(front, "kimi_serve_waiting_settlements") >= 1, 10.0)  # type: ignore[misc]
        assert metric(front, "kimi_serve_unsettled_charges_total") == 0
    redis.start()
    for front in fronts:

        def shares(front: Front = front) -> bool:
            assert front.chat("x", headers=header, max_tokens=1).status_code == 200
            return metric(front, "kimi_serve_limits_shared") == 1

        eventually(shares, 60.0)
        eventually(lambda front=front: metric(front, "kimi_serve_waiting_settlements") == 0, 30.0)  # type: ignore[misc]
        front.assert_idle()
    eventually(lambda: running_of(redis) == 0, 10.0)


def test_a_budget_keeps_what_was_used_though_redis_hung_as_the_request_ended(
    start: Start, file: Path, redis: Server
) -> None:
    """A Redis that keeps its memory: the settlement is sent again until it is heard."""
    header = made(file, "acme", "--tokens-per-month", "100000")
    front = start(keys=settings(file, redis, redis_timeout_s=0.3), dials={"tokens": 20, "itl_s": 0.05})
    ended, prompt_tokens = threading.Event(), 0

    def drink() -> None:
        nonlocal prompt_tokens
        with streaming(front, header) as stream:
            prompt_tokens = int(stream.headers["x-kimi-serve-prompt-tokens"])
            stream.read()
        ended.set()

    client = threading.Thread(target=drink)
    client.start()
    eventually(lambda: running_of(redis) == 1, 10.0)
    with redis.hung():
        assert ended.wait(60)
        client.join()
        time.sleep(0.5)
    eventually(lambda: spent(redis) == prompt_tokens + 20, 30.0)
    assert running_of(redis) == 0


def spent(redis: Server) -> int:
    async def ask() -> int:
        client = redis.client()
        (name,) = await client.call("KEYS", "*:month:*") or [""]  # type: ignore[misc]
        total = await client.call("GET", str(name))
        await client.aclose()
        return int(str(total))

    return asyncio.run(ask())


def test_a_settlement_that_redis_never_hears_is_counted_and_its_hold_expires(redis: Server) -> None:
    async def story() -> None:
        limits = Limits(concurrent_requests=1, tokens_per_month=1000)
        async with gateway(redis, lease=1, timeout=0.1) as counters:
            held = await charge(counters, key_of(limits), Cost(100))
            with redis.hung():
                held.settle(Cost(10))
                assert counters.unsent == 1
                async with asyncio.timeout(60):
                    while not counters.unsettled:
                        await asyncio.sleep(0.05)
            assert (counters.unsettled, counters.unsent) == (1, 0)
        async with gateway(redis, lease=1) as counters:
            await asyncio.sleep(1.1)
            # Its place is free again; its estimate stays charged to the month.
            await charge(counters, key_of(limits), Cost(1))
            assert await counters._redis.call("GET", "kimi-serve:{0123456789ab}:month:2031-05") == "101"

    asyncio.run(story())
