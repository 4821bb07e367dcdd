"""An open loop of requests at several gateways, as through a load balancer. Knows HTTP and outcomes; no fault.

Requests are sent when they are due, whatever became of those before. The balancer does what any does: it looks at
/readyz, gives requests to ready gateways in turn, and tries the next where a gateway takes no connection. It sends
nothing a second time.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

import httpx
import msgspec

from benchmarks.load.answers import Seen
from benchmarks.load.arrivals import moments
from benchmarks.load.exchange import ROUTE

LOOKS_EVERY_S: Final = 0.1
LOOK_WITHIN_S: Final = 1.0
CONNECT_WITHIN_S: Final = 5.0
_DONE: Final = b"data: [DONE]\n\n"

Outcome = Literal["answered", "refused", "ended", "broken", "failed"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and what its client saw. Moments are of time.monotonic.

    refused: 429 or 503 with Retry-After. ended: a stream that had begun and closed with an error event. broken: its
    connection to the gateway broke. failed: whatever else is no whole answer.
    """

    gateway: str
    stream: bool
    due_s: float
    sent_s: float
    end_s: float
    outcome: Outcome
    why: str | None = None


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message


class _Whole(msgspec.Struct):
    choices: list[_Choice]


@dataclass
class Traffic:
    urls: Sequence[str]
    rate: float
    body: Mapping[str, object]  # without messages: each says something else, as one text belongs to one engine's cache
    headers: Mapping[str, str] = field(default_factory=dict)
    patience_s: float = 60.0
    seed: int = 1
    asked: list[Asked] = field(default_factory=list)
    _ready: dict[str, bool] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _has_begun: threading.Event = field(default_factory=threading.Event)
    _turn: int = 0

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Until the block ends; then what is under way may end, within its patience."""
        self._ready = dict.fromkeys(self.urls, True)
        thread = threading.Thread(target=lambda: asyncio.run(self._flow()), name="traffic")
        thread.start()
        try:
            assert self._has_begun.wait(self.patience_s), "the first request was not sent"
            yield
        finally:
            self._over.set()
            thread.join()

    async def _flow(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        patience = httpx.Timeout(self.patience_s, connect=CONNECT_WITHIN_S)
        async with httpx.AsyncClient(limits=limits, timeout=patience, trust_env=False) as http:
            watching = [asyncio.create_task(self._watch(http, url)) for url in self.urls]
            async with asyncio.TaskGroup() as asking:
                start = time.monotonic()
                for number, due in enumerate(moments("poisson", self.rate, math.inf, self.seed)):
                    await asyncio.sleep(max(0.0, start + due - time.monotonic()))
                    if self._over.is_set():
                        break
                    asking.create_task(self._ask(http, number, start + due))
                    self._has_begun.set()
            for watcher in watching:
                watcher.cancel()

    async def _watch(self, http: httpx.AsyncClient, url: str) -> None:
        while True:
            try:
                response = await http.get(f"{url}/readyz", timeout=LOOK_WITHIN_S)
                self._ready[url] = response.status_code == 200
            except httpx.TransportError:
                self._ready[url] = False
            await asyncio.sleep(LOOKS_EVERY_S)

    async def _ask(self, http: httpx.AsyncClient, number: int, due: float) -> None:
        stream = number % 2 == 0
        messages = [{"role": "user", "content": f"{number}: hello"}]
        body = {**self.body, "messages": messages, "stream": stream}
        sent, url, outcome, why = time.monotonic(), "", "failed", "no gateway takes a connection"
        for url in self._in_turn():
            try:
                async with asyncio.timeout(self.patience_s):
                    outcome, why = await self._exchange(http, url, body)
                break
            except httpx.ConnectError:
                continue
            except (TimeoutError, httpx.TimeoutException):
                outcome, why = "failed", "its client's patience was over"
                break
            except httpx.TransportError as error:
                outcome, why = "broken", type(error).__name__
                break
        self.asked.append(Asked(url, stream, due, sent, time.monotonic(), outcome, why))

    def _in_turn(self) -> list[str]:
        """The ready ones first, another of them every time; where none is, it tries all the same."""
        self._turn += 1
        turned = [self.urls[(self._turn + number) % len(self.urls)] for number in range(len(self.urls))]
        return sorted(turned, key=lambda url: not self._ready[url])

    async def _exchange(
        self, http: httpx.AsyncClient, url: str, body: Mapping[str, object]
    ) -> tuple[Outcome, str | None]:
        began = time.monotonic()
        async with http.stream("POST", url + ROUTE, json=dict(body), headers=dict(self.headers)) as response:
            seen = Seen(began)
            if response.status_code != 200:
                told = response.headers.get
                seen.refuse(
                    response.status_code, await response.aread(), told("x-kimi-serve-reason"), told("retry-after")
                )
                return ("refused" if seen.outcome == "refused" else "failed"), seen.why
            if not body["stream"]:
                return _whole(await response.aread())
            last = b""
            async for chunk in response.aiter_raw():
                seen.feed(chunk, time.monotonic() - began)
                last = (last + chunk)[-len(_DONE) :]
        return _streamed(seen, is_done=last == _DONE)


def _whole(data: bytes) -> tuple[Outcome, str | None]:
    try:
        choices = msgspec.json.decode(data, type=_Whole).choices
    except ValueError:
        choices = []
    if choices and choices[0].message.content:
        return "answered", None
    return "failed", "200 without an answer"


def _streamed(seen: Seen, *, is_done: bool) -> tuple[Outcome, str | None]:
    if seen.outcome == "answered" and seen.token_s:
        return "answered", None
    if seen.outcome == "answered":
        return "failed", "a stream without a token"
    if is_done and seen.why is not None and seen.why.startswith("stream: "):
        return ("ended", seen.why) if seen.token_s else ("failed", f"{seen.why}, before its first token")
    return "failed", seen.why
