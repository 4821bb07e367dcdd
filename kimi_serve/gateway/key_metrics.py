"""How keys are looked up and limits are counted, as Prometheus reads it. Knows numbers; no key and no tenant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class Standing:
    is_store_up: bool = True  # as far as the last look-up could tell
    stale: int = 0
    is_shared: bool = False
    fallbacks: int = 0
    unsent: int = 0
    unsettled: int = 0


class KeyMetrics(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self.seen = Standing()
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        seen = self.seen
        yield _gauge("key_store_up", "1 while the records of keys can be read", seen.is_store_up)
        yield _counter("stale_keys", "Requests let in by a key's last known record, its store being away", seen.stale)
        yield _gauge("limits_shared", "1 while limits are counted in Redis", seen.is_shared)
        yield _counter("limit_fallbacks", "Requests whose limits were counted here, Redis being away", seen.fallbacks)
        yield _gauge("waiting_settlements", "Requests that ended and whose use Redis was not told yet", seen.unsent)
        yield _counter("unsettled_charges", "Requests whose use Redis was never told", seen.unsettled)

    def describe(self) -> Iterable[Metric]:
        return self.collect()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"kimi_serve_{name}", text, value)


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(f"kimi_serve_{name}", text, value)
