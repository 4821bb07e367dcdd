"""A whole stack: gateways and engines, and of a run one Redis and one PostgreSQL. Knows no traffic.

One kind of parts may be reached over wires: what is slow or cut off is the wire, since nobody but root has another
network to cut.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import httpx

from benchmarks.faults.parts import Engine, FarEngine, Gateway, Part, Store
from tests.gateway.faults.conftest import STARTS_IN, eventually, opened
from tests.gateway.faults.wires import wire_to
from tests.gateway.tenants.postgres_server import PostgresServer, postgres_server
from tests.gateway.tenants.redis_server import Server as RedisServer
from tests.gateway.tenants.redis_server import redis_server

Kind = Literal["engine", "gateway", "redis", "postgres"]
# The gateway's defaults but for these: this balancer looks ten times a second, and engines are looked at every second.
SETTINGS: Final = {"listen__settle_s": 1, "listen__grace_s": 60, "replicas__check_s": 1}
_SALT: Final = "a secret of many letters"


@dataclass(frozen=True, slots=True)
class Stores:
    """For all faults of a run; None where it is not installed."""

    redis: RedisServer | None
    postgres: PostgresServer | None
    keys: Path
    key: str

    @property
    def kinds(self) -> tuple[Kind, ...]:
        redis: tuple[Kind, ...] = () if self.redis is None else ("redis",)
        return redis if self.postgres is None else (*redis, "postgres")


@dataclass(frozen=True, slots=True)
class Plan:
    checkpoint: Path
    folder: Path
    gateways: int = 2
    engines: int = 2  # fake ones, where urls names none
    urls: Sequence[str] = ()
    dials: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stack:
    engines: list[Engine] | list[FarEngine]
    gateways: list[Gateway]
    redis: Store | None
    postgres: Store | None

    def part(self, kind: Kind) -> Part:
        """The one that meets the fault."""
        store = {"redis": self.redis, "postgres": self.postgres}.get(kind)
        assert store is not None or kind in ("engine", "gateway"), f"{kind} is not installed"
        return store or (self.engines[0] if kind == "engine" else self.gateways[0])

    def wait_for_engines(self) -> None:
        for gateway in self.gateways:
            eventually(lambda gateway=gateway: gateway.ready_engines == len(self.engines), STARTS_IN)  # type: ignore[misc]

    @property
    def retries(self) -> int:
        return sum(one.retries for one in self.gateways)


@contextmanager
def stores(folder: Path, *, are_wanted: bool) -> Iterator[Stores]:
    """And a key that has no limit; in a file where there is no PostgreSQL."""
    with ExitStack() as stack:
        redis = postgres = None
        if are_wanted and shutil.which("redis-server"):
            redis = stack.enter_context(redis_server(folder))
        if are_wanted and shutil.which("postgres") and shutil.which("initdb"):
            postgres = stack.enter_context(postgres_server())
        keys = folder / "keys.json"
        where = ["--file", str(keys)] if postgres is None else ["--store", postgres.url()]
        command = [sys.executable, "-m", "kimi_serve.cli", "keys", *where, "create", "faults"]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
        yield Stores(redis, postgres, keys, made.stdout.splitlines()[0])


@contextmanager
def running(plan: Plan, shared: Stores, wired: Kind | None) -> Iterator[Stack]:
    """Ready when the block begins."""
    with ExitStack() as stack:
        engines = _engines(plan, stack)
        redis = None if shared.redis is None else Store(shared.redis.ready(), signal.SIGTERM)
        postgres = None if shared.postgres is None else Store(shared.postgres, signal.SIGINT)  # its "fast shutdown"
        for one, port in _reached(wired, engines, redis, postgres):
            one.wire = stack.enter_context(wire_to(port))
        urls = [one.url if one.wire is None else f"http://127.0.0.1:{one.wire.port}" for one in engines]
        settings = SETTINGS | _where_keys_are(shared, redis, postgres)

        def gateway(number: int) -> Gateway:
            log = plan.folder / f"gateway-{number}.log"
            return Gateway(lambda port: opened(plan.checkpoint, urls, log, port, **settings), stack)

        gateways = [gateway(number) for number in range(plan.gateways)]
        if wired == "gateway":
            gateways[0].wire = stack.enter_context(wire_to(gateways[0].port))
        made = Stack(engines, gateways, redis, postgres)
        made.wait_for_engines()
        yield made


def _engines(plan: Plan, stack: ExitStack) -> list[Engine] | list[FarEngine]:
    if plan.urls:
        return [FarEngine(url) for url in plan.urls]
    return [Engine(plan.dials, stack) for _ in range(plan.engines)]


def _reached(
    wired: Kind | None, engines: list[Engine] | list[FarEngine], redis: Store | None, postgres: Store | None
) -> list[tuple[Part, int]]:
    """What gets a wire, and the port behind it."""
    if wired == "engine":
        port = urlsplit(engines[0].url).port
        assert port is not None
        return [(engines[0], port)]
    store = {"redis": redis, "postgres": postgres}.get(wired or "")
    return [] if store is None else [(store, store.port)]


def _where_keys_are(shared: Stores, redis: Store | None, postgres: Store | None) -> dict[str, object]:
    found: dict[str, object] = {"keys__salt_secret": _SALT}
    if shared.redis is not None and redis is not None:
        found["keys__redis"] = redis.reached(shared.redis.url())
    if shared.postgres is None or postgres is None:
        return found | {"keys__file": str(shared.keys)}
    return found | {"keys__postgres": postgres.reached(shared.postgres.url())}


def served_model(stack: Stack, key: str) -> str:
    headers = {"authorization": f"Bearer {key}"}
    listing = httpx.get(f"{stack.gateways[0].url}/v1/models", headers=headers, trust_env=False)
    return str(listing.raise_for_status().json()["data"][0]["id"])
