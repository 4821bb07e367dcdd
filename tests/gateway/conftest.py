"""A gateway on a real socket in front of fake engines. Knows settings; expects nothing."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from kimi_serve.gateway.app import create_app
from kimi_serve.gateway.connection import Connection
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.settings import Settings, read
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import in_thread
from tests.gateway.tenants.postgres_server import PostgresServer, postgres_server
from tests.gateway.tenants.redis_server import Server, redis_server

MODEL = "kimi-vl"


@dataclass
class Front:
    url: str
    gateway: Gateway
    engines: list[FakeEngine]
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def chat(self, content: object, headers: dict[str, str] | None = None, **options: object) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **options}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def assert_idle(self) -> None:
        """Every counter of what is outstanding is back at zero, a moment after the client has its last byte."""
        deadline = time.monotonic() + 1
        while self.gateway.admission.snapshot().outstanding.requests and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = self.gateway.admission.snapshot()
        assert seen.outstanding.requests == seen.outstanding.cost == 0
        assert sum(seen.waiting.values()) == 0
        assert self.gateway.ledger.total == 0
        assert [replica.outstanding for replica in self.gateway.fleet.snapshot()] == [0] * len(self.engines)


Start = Callable[..., Front]


@pytest.fixture(scope="session")
def checkpoint(golden_pack: Path) -> Path:
    return golden_pack / "checkpoint"


@pytest.fixture(scope="module")
def alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One gateway for all bodies that a test draws, with every route; it fetches nothing, since URLs are drawn too."""
    engine = FakeEngine(Dials(max_model_len=8192, tokens=2))
    with in_thread(engine) as served:
        replicas = {"urls": [served.url], "check_s": 0.2}
        kept = {"folder": tmp_path_factory.mktemp("kept")}
        chosen = read(None, checkpoint=checkpoint, replicas=replicas, media={"allow_remote": False}, files=kept)
        with running(chosen, [engine]) as opened:
            yield opened


@contextmanager
def running(settings: Settings, engines: list[FakeEngine]) -> Iterator[Front]:
    opened: list[Gateway] = []
    with in_thread(create_app(settings, opened.append), protocol=partial(Connection, settings.listen)) as served:
        front = Front(served.url, opened[0], engines)
        with front.http:
            wait_ready(front)
            yield front


def wait_ready(front: Front) -> None:
    deadline = time.monotonic() + 10
    while front.gateway.fleet.ready < len(front.engines):
        assert time.monotonic() < deadline, front.gateway.fleet.snapshot()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def untouched(checkpoint: Path) -> Iterator[Front]:
    """One gateway for all tests of a module that send nothing to an engine."""
    engine = FakeEngine(Dials(max_model_len=8192))
    with in_thread(engine) as served:
        settings = read(None, checkpoint=checkpoint, replicas={"urls": [served.url], "check_s": 0.2})
        with running(settings, [engine]) as front:
            yield front


@pytest.fixture
def idle(untouched: Front) -> Iterator[Front]:
    """A gateway whose engine must not see a request."""
    yield untouched
    assert untouched.engines[0].record.count == 0
    untouched.assert_idle()


@pytest.fixture
def start(checkpoint: Path) -> Iterator[Start]:
    """start(engines=1, dials={}, **settings) -> Front; all of it ends with the test."""
    with ExitStack() as stack:

        def begin(engines: int = 1, dials: dict[str, Any] | None = None, **sections: Any) -> Front:
            doubles = [FakeEngine(Dials(**{"max_model_len": 8192, **(dials or {})})) for _ in range(engines)]
            urls = [stack.enter_context(in_thread(double)).url for double in doubles]
            replicas = {"urls": urls, "check_s": 0.2, **sections.pop("replicas", {})}
            settings = read(None, checkpoint=checkpoint, replicas=replicas, **sections)
            return stack.enter_context(running(settings, doubles))

        yield begin


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres(shared_postgres: PostgresServer) -> PostgresServer:
    if shared_postgres.process.poll() is not None:
        shared_postgres.start()
    return shared_postgres


@pytest.fixture
def db_url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_redis: Server) -> Server:
    return shared_redis.ready()
