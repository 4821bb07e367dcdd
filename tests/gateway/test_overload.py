"""Twice as many requests as an engine can serve, to a gateway with default settings and past it, at the same time.

The engine serves some at once and keeps the others in its own line, as vLLM does. Counts are compared with what the
other engine did in the same seconds, so that a slow machine slows both.
"""

import asyncio
import time
from dataclasses import dataclass, field

import aiohttp

from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import in_thread
from tests.gateway.conftest import MODEL, Start

SLOTS, TTFT_S, ITL_S, TOKENS = 6, 0.05, 0.05, 8
DIALS = {"slots": SLOTS, "ttft_s": TTFT_S, "itl_s": ITL_S, "tokens": TOKENS}
PER_SECOND = SLOTS / (TTFT_S + ITL_S * (TOKENS - 1))  # 15
LIMIT_S = 2.0  # of the time to the first token, as benchmarks/load/scenarios.toml has it for overload
SETTLED_S, OFFERED_S = 2.25, 4.5  # what comes between the two is counted
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": TOKENS}


@dataclass
class Asked:
    at: float
    status: int = 0
    first_at: float | None = None
    end_at: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    text: bytes = b""

    @property
    def is_good(self) -> bool:
        return self.status == 200 and self.first_at is not None and self.first_at - self.at <= LIMIT_S


async def ask(http: aiohttp.ClientSession, url: str, *, stream: bool) -> Asked:
    asked = Asked(time.monotonic())
    try:
        async with http.post(f"{url}/v1/chat/completions", json={**BODY, "stream": stream}) as response:
            asked.status, asked.headers = (
                response.status,
                {key.lower(): value for key, value in response.headers.items()},
            )
            async for part in response.content.iter_any():
                if asked.first_at is None and (not stream or b'"content":" token"' in part):
                    asked.first_at = time.monotonic()
                asked.text += part
        asked.end_at = time.monotonic()
    except asyncio.CancelledError:
        pass  # an answer that nobody needs any more: it is late already
    return asked


async def offer(urls: list[str]) -> tuple[float, list[list[Asked]]]:
    """Every url is asked twice as often as an engine can answer; ends when all that could be good has been."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as http:
        began, tasks = time.monotonic(), [list[asyncio.Task[Asked]]() for _ in urls]
        for number in range(int(2 * PER_SECOND * OFFERED_S)):
            await asyncio.sleep(began + number / (2 * PER_SECOND) - time.monotonic())
            for url, to_it in zip(urls, tasks, strict=True):
                to_it.append(asyncio.create_task(ask(http, url, stream=number % 3 != 0)))
        await asyncio.wait([task for to_it in tasks for task in to_it], timeout=LIMIT_S + 1)
        for to_it in tasks:
            for task in to_it:
                task.cancel()
        return began, [await asyncio.gather(*to_it) for to_it in tasks]


def test_an_overload_is_refused_early_and_what_is_taken_is_answered_in_time(start: Start) -> None:
    front = start(dials=DIALS)
    engine = FakeEngine(Dials(**DIALS))  # type: ignore[arg-type]  # a table of both kinds
    with in_thread(engine) as served:
        began, (with_us, without) = asyncio.run(offer([front.url, served.url]))
        settled = [[one for one in all_of if one.at >= began + SETTLED_S] for all_of in (with_us, without)]
        ends = [one.end_at - began for one in without if one.end_at is not None]
        capacity = sum(SETTLED_S <= end < OFFERED_S for end in ends)
        good = [sum(one.is_good for one in counted) for counted in settled]
        refused = [one for one in with_us if one.status != 200]
    assert len(refused) > len(with_us) / 5
    assert {one.status for one in refused} <= {429, 503}
    assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
    assert all(one.end_at is not None and one.end_at - one.at < LIMIT_S for one in refused)
    assert not [one for one in with_us if one.status == 200 and b'"error"' in one.text]
    assert capacity > 0
    assert good[0] >= 0.9 * capacity, (good, capacity)
    assert good[1] <= 0.1 * capacity, (good, capacity)
    front.assert_idle()
