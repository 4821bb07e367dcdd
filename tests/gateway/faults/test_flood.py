"""Ten thousand requests at once over HTTP: a bounded line, a refusal for the rest, and nothing left at the end."""

import asyncio
import json
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from kimi_serve.testing.fake_engine import FakeEngine
from tests.gateway.faults.clients import request
from tests.gateway.faults.conftest import Open
from tests.waiting import eventually

QUEUED = int(os.environ.get("KIMI_SERVE_QUEUED_REQUESTS", "10000"))
AT_ENGINE = 64
REFUSED = 200
PATIENCE = 240.0


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = QUEUED + 2000
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{QUEUED} connections need {needed} open files, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@dataclass
class Crowd:
    """Clients that send one request each and note how it was answered."""

    port: int
    heard: dict["Guest", bytes] = field(default_factory=dict)

    async def grow(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count // 100):  # the line of connections that nobody has taken yet is finite too
            await asyncio.gather(
                *(loop.create_connection(lambda: Guest(self), "127.0.0.1", self.port) for _ in range(100))
            )

    def statuses(self) -> Counter[bytes]:
        return Counter(heard[9:12] for heard in self.heard.values() if heard)

    async def until(self, answered: int) -> None:
        ends = time.monotonic() + PATIENCE
        while sum(self.statuses().values()) < answered:
            assert time.monotonic() < ends, self.statuses()
            await asyncio.sleep(0.1)


class Guest(asyncio.Protocol):
    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self.transport: asyncio.Transport | None = None
        self.name = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.name = str(len(self._crowd.heard))
        self._crowd.heard[self] = b""
        transport.write(request(max_tokens=1, user=self.name))

    def leave(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._crowd.heard[self] += data


@pytest.mark.slow  # half a minute on an idle machine
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("many_files")
def test_ten_thousand_requests_wait_and_the_rest_are_refused(
    open_door: Open, fake: FakeEngine, engine_url: str
) -> None:
    fake.dials = fake.dials.turned({"ttft_s": 600.0})
    waiting = QUEUED - AT_ENGINE
    door = open_door(
        [engine_url],
        admission__requests=AT_ENGINE,
        admission__waiting=waiting,
        admission__waiting_per_tenant=waiting + 1,
        admission__deadline_s=600,
        listen__keep_alive_s=600,
        # Ten thousand clients live in one process with the engine: it may be slow to answer, and is not down for that.
        upstream__connect_s=PATIENCE,
        replicas__check_s=2 * PATIENCE,
    )
    before = door.resident_bytes()

    async def come_and_go() -> None:
        crowd = Crowd(door.port)
        try:
            await watch(crowd)
        finally:
            for guest in crowd.heard:
                guest.leave()
            await asyncio.sleep(0.1)

    async def watch(crowd: Crowd) -> None:
        began = time.monotonic()
        await crowd.grow(QUEUED + REFUSED)
        await crowd.until(REFUSED)
        await asyncio.to_thread(eventually, lambda: door.metric("waiting_requests") == waiting, PATIENCE)
        came = time.monotonic()
        most = door.resident_bytes() - before
        assert crowd.statuses() == {b"503": REFUSED}
        for heard in filter(None, crowd.heard.values()):
            assert b"retry-after: " in heard
            assert json.loads(heard.partition(b"\r\n\r\n")[2])["error"]["code"] == "queue_full"
        at_engine = {json.loads(received.body)["user"] for received in fake.record.requests}
        assert len(at_engine) == AT_ENGINE
        working = [guest for guest in crowd.heard if guest.name in at_engine]
        queued = [guest for guest, heard in crowd.heard.items() if not heard and guest.name not in at_engine]
        for guest in queued[: QUEUED * 4 // 5 - AT_ENGINE]:
            guest.leave()
        # A place that came free now could still go to one whose leaving is not heard yet.
        await asyncio.to_thread(eventually, lambda: door.metric("waiting_requests") == QUEUED // 5, PATIENCE)
        fake.dials = fake.dials.turned({"ttft_s": 0.0})
        for guest in working:
            guest.leave()
        await crowd.until(REFUSED + QUEUED // 5)
        print(f"came in {came - began:.1f} s, gone in {time.monotonic() - came:.1f} s, {most >> 20} MiB more")
        assert crowd.statuses() == {b"503": REFUSED, b"200": QUEUED // 5}
        assert most < QUEUED * 100_000

    asyncio.run(come_and_go())
    door.assert_idle()
    eventually(lambda: door.metric("connections") == 1)
    assert fake.record.count == AT_ENGINE + QUEUED // 5
