"""What the routes share, made from the settings and closed with the application. Knows parts; handles no request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from kimi_serve.errors import ConfigError
from kimi_serve.gateway import tracing
from kimi_serve.gateway.admission.ledger import BytesLedger
from kimi_serve.gateway.admission.slots import Admission, Bounds, Capacity
from kimi_serve.gateway.archive import Archive
from kimi_serve.gateway.expansion.expand import Expander
from kimi_serve.gateway.expansion.expand import cache as expansion_cache
from kimi_serve.gateway.expansion.workers import Workers
from kimi_serve.gateway.identity import Identity
from kimi_serve.gateway.leaving import Leaving
from kimi_serve.gateway.media.fetch import Fetcher, FetchRules
from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.prompt_cost import Meter
from kimi_serve.gateway.replicas.discovery import Discovery, DnsNames, StaticList
from kimi_serve.gateway.replicas.fleet import Fleet
from kimi_serve.gateway.replicas.health import HealthTimes
from kimi_serve.gateway.replicas.replica import ReplicaLimits
from kimi_serve.gateway.replicas.retries import RetryBudget
from kimi_serve.gateway.scaling.pool import Pool
from kimi_serve.gateway.scaling.scaler import Scaler, cache
from kimi_serve.gateway.settings import Settings
from kimi_serve.gateway.tracing import Tracer
from kimi_serve.gateway.upstream import Timeouts, Upstream


@dataclass(frozen=True, slots=True)
class Gateway:
    settings: Settings
    metrics: Metrics
    meter: Meter
    identity: Identity
    ledger: BytesLedger
    admission: Admission
    fleet: Fleet
    upstream: Upstream
    fetcher: Fetcher
    expander: Expander
    retries: RetryBudget
    leaving: Leaving
    tracer: Tracer
    archive: Archive | None  # files and batches, where a folder is set
    scaler: Scaler

    def measure(self) -> None:
        """Gauges follow what the parts say at the moment of a scrape."""
        m, seen = self.metrics, self.admission.snapshot()
        for priority, count in seen.waiting.items():
            m.waiting.labels(priority).set(count)
            m.oldest.labels(priority).set(seen.oldest_s[priority])
        m.waiting_cost.set(seen.waiting_cost)
        m.outstanding.set(seen.outstanding.requests)
        m.outstanding_cost.set(seen.outstanding.cost)
        m.capacity.set(seen.capacity.requests)
        m.capacity_cost.set(seen.capacity.cost)
        m.draining.set(seen.is_draining or self.leaving.is_announced)
        m.bytes_in_flight.set(self.ledger.total)
        m.ready_replicas.set(self.fleet.ready)
        if self.archive is not None:
            m.files.set(self.archive.files.room.total.files)
            m.file_bytes.set(self.archive.files.room.total.bytes)
        m.expansion.busy.set(self.expander.workers.busy)
        m.keys.seen = self.identity.standing()
        m.measure(self.fleet.snapshot())


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Gateway]:
    """Everything open and the engines watched, until the block ends."""
    if settings.checkpoint is None:
        raise ConfigError("checkpoint: not set; expected the folder of the checkpoint's tokenizer and preprocessor")
    async with AsyncExitStack() as stack:
        ledger = BytesLedger(settings.body.in_flight_bytes, settings.body.in_flight_bytes_per_tenant)
        a = settings.admission
        admission = Admission(capacity(settings, ()), Bounds(a.waiting, a.waiting_per_tenant, a.patience_s))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(trust_env=False, headers=engine_headers(settings))
        )
        fleet = Fleet(
            discovery(settings),
            session,
            limits=replica_limits(settings),
            times=HealthTimes(interval_s=settings.replicas.check_s),
            refresh_s=settings.replicas.refresh_s,
            on_change=lambda batches: admission.set_capacity(capacity(settings, batches)),
        )
        metrics, meter = Metrics(), Meter.from_directory(settings.checkpoint)
        workers = await stack.enter_async_context(Workers(settings.workers.processes, wait_s=settings.workers.wait_s))
        fetcher = await stack.enter_async_context(Fetcher(fetch_rules(settings)))
        gateway = Gateway(
            settings,
            metrics,
            meter,
            await stack.enter_async_context(Identity.opened(settings.keys)),
            ledger,
            admission,
            fleet,
            await stack.enter_async_context(Upstream(timeouts(settings))),
            fetcher,
            Expander(settings, fetcher, workers, meter, metrics, expansion_cache(settings.workers.cache_bytes)),
            RetryBudget(settings.replicas.retry_percent),
            Leaving(),
            await stack.enter_async_context(tracing.opened(settings.tracing)),
            await stack.enter_async_context(Archive.opened(settings)),
            Scaler(await stack.enter_async_context(scalers(settings)), cache(settings.scaling.cache_bytes)),
        )
        await stack.enter_async_context(fleet.running())
        yield gateway


def engine_headers(settings: Settings) -> dict[str, str]:
    key = settings.upstream.api_key
    return {} if key is None else {"authorization": f"Bearer {key.get_secret_value()}"}


def discovery(settings: Settings) -> Discovery:
    replicas = settings.replicas
    if bool(replicas.urls) == bool(replicas.dns):
        raise ConfigError("replicas: expected either urls or dns")
    if replicas.urls:
        return StaticList.of(replicas.urls)
    host, colon, port = replicas.dns.rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigError(f"replicas.dns: {replicas.dns!r} is not supported; expected host:port")
    return DnsNames(host, int(port))


def replica_limits(settings: Settings) -> ReplicaLimits:
    e = settings.elision
    return ReplicaLimits(image_cache_bytes=int(e.engine_cache_gib * 2**30), image_cache_share=e.cache_share)


def capacity(settings: Settings, batches: Sequence[int | None]) -> Capacity:
    """With no engine ready nothing is let through: requests wait for one until their deadline."""
    return Capacity(sum(places(settings, batch) for batch in batches), settings.admission.cost * len(batches))


def places(settings: Settings, batch: int | None) -> int:
    """Requests that go to an engine which computes so many at once: an eighth more, from which its batch is refilled
    without a way through us, while their pictures are prepared. All beyond would wait in its line instead of ours.
    """
    most = settings.admission.requests
    return most if batch is None else min(most, batch + max(1, batch // 8))


def timeouts(settings: Settings) -> Timeouts:
    u = settings.upstream
    return Timeouts(u.connect_s, u.first_byte_s, u.between_frames_s, u.total_s, u.unreachable_s)


def scalers(settings: Settings) -> Pool:
    s = settings.scaling
    return Pool(s.workers, s.timeout_s, s.memory_bytes)


def fetch_rules(settings: Settings) -> FetchRules:
    m = settings.media
    return FetchRules(
        ports=m.ports,
        allowed_domains=m.allowed_domains,
        denied_domains=m.denied_domains,
        allow_private=m.allow_private,
        max_bytes=m.max_bytes,
        max_redirects=m.max_redirects,
        max_concurrent=m.max_concurrent,
        timeout_s=m.timeout_s,
    )
