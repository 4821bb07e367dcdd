"""All replicas together, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from kimi_serve.gateway.replicas import Fleet, HealthTimes, RequestView, StaticList, Text, read_prompt

TIMES = HealthTimes(interval_s=0.05, timeout_s=1.0, unready_after=2)
PROMPT = read_prompt([Text(b"hello", 10)], b"", opening=1)
REQUEST = RequestView("kimi", weight=10, total_tokens=20, key=PROMPT.key)


@dataclass
class Engine:
    url: str = ""
    is_well: bool = True
    checks: int = 0


@dataclass
class Listed:
    """A discovery whose answer changes."""

    listed: set[str] = field(default_factory=set)
    fails: bool = False

    async def urls(self) -> frozenset[str]:
        if self.fails:
            raise OSError("the resolver is away")
        return frozenset(self.listed)


@asynccontextmanager
async def engines(count: int) -> AsyncIterator[list[Engine]]:
    runners, started = [], []
    for _ in range(count):
        engine = Engine()
        runner = web.AppRunner(_application(engine))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        engine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        runners.append(runner)
        started.append(engine)
    try:
        yield started
    finally:
        for runner in runners:
            await runner.cleanup()


def _application(engine: Engine) -> web.Application:
    async def health(request: web.Request) -> web.Response:
        engine.checks += 1
        return web.Response(status=200 if engine.is_well else 503)

    async def info(request: web.Request) -> web.Response:
        return web.Response(text=json.dumps({"model_class": "kimi_serve.model.kimi_vl:KimiVL"}))

    async def models(request: web.Request) -> web.Response:
        return web.Response(text=json.dumps({"data": [{"id": "kimi", "max_model_len": 4096}]}))

    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_get("/plugins/kimi_serve/info", info)
    app.router.add_get("/v1/models", models)
    return app


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def run(count: int, scenario: Callable[[list[Engine], aiohttp.ClientSession], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(60), engines(count) as started, aiohttp.ClientSession() as session:
            await scenario(started, session)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(all_of_it())


def test_replicas_become_ready_and_are_chosen() -> None:
    async def scenario(started: list[Engine], session: aiohttp.ClientSession) -> None:
        heard: list[Sequence[int | None]] = []
        fleet = Fleet(StaticList.of(engine.url for engine in started), session, times=TIMES, on_change=heard.append)
        assert fleet.choose(PROMPT, REQUEST) is None
        async with fleet.running():
            await until(lambda: fleet.ready == 2)
            chosen = fleet.choose(PROMPT, REQUEST)
            assert chosen is not None
            assert chosen.url in {engine.url for engine in started}
            assert fleet.models() == {"kimi": 4096}
        assert heard[-1] == (None, None)

    run(2, scenario)


def test_one_that_falls_ill_is_left_out_until_it_is_well() -> None:
    async def scenario(started: list[Engine], session: aiohttp.ClientSession) -> None:
        ill, well = started
        fleet = Fleet(StaticList.of([ill.url, well.url]), session, times=TIMES)
        async with fleet.running():
            await until(lambda: fleet.ready == 2)
            ill.is_well = False
            await until(lambda: fleet.ready == 1)
            chosen = fleet.choose(PROMPT, REQUEST)
            assert chosen is not None
            assert chosen.url == well.url
            problems = [replica.problem for replica in fleet.snapshot() if not replica.is_ready]
            assert len(problems) == 1
            assert "503" in str(problems[0])
            ill.is_well = True
            await until(lambda: fleet.ready == 2)

    run(2, scenario)


def test_replicas_come_and_go_with_the_list_and_the_gone_are_not_asked_any_more() -> None:
    async def scenario(started: list[Engine], session: aiohttp.ClientSession) -> None:
        first, second = started
        listed = Listed({first.url})
        fleet = Fleet(listed, session, times=TIMES, refresh_s=0.05)
        async with fleet.running():
            await until(lambda: fleet.ready == 1)
            leaving = fleet.choose(PROMPT, REQUEST)
            assert leaving is not None
            with leaving.serving(PROMPT, REQUEST) as call:
                listed.listed = {second.url}
                await until(lambda: [item.url for item in fleet.snapshot() if item.is_ready] == [second.url])
                call.succeeded()
            assert leaving.outstanding == 0
            await asyncio.sleep(0.1)
            checks = first.checks
            await asyncio.sleep(0.3)
            assert first.checks == checks

    run(2, scenario)


def test_a_lookup_that_fails_leaves_what_was_known() -> None:
    async def scenario(started: list[Engine], session: aiohttp.ClientSession) -> None:
        listed = Listed({started[0].url})
        fleet = Fleet(listed, session, times=TIMES, refresh_s=0.02)
        async with fleet.running():
            await until(lambda: fleet.ready == 1)
            listed.fails = True
            await asyncio.sleep(0.2)
            assert fleet.ready == 1
            listed.fails = False
            listed.listed.clear()
            await until(lambda: fleet.ready == 0)
            assert fleet.choose(PROMPT, REQUEST) is None

    run(1, scenario)


def test_a_failure_of_the_gateway_stops_the_watching() -> None:
    async def scenario(started: list[Engine], session: aiohttp.ClientSession) -> None:
        fleet = Fleet(StaticList.of([started[0].url]), session, times=TIMES)
        with pytest.raises(ZeroDivisionError):
            async with fleet.running():
                raise ZeroDivisionError

    run(1, scenario)
