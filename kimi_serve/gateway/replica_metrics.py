"""What each engine is like, as Prometheus reads it. Knows snapshots; an engine that is gone leaves no series behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kimi_serve.gateway.replicas.breaker import State
from kimi_serve.gateway.replicas.replica import ReplicaSnapshot


class ReplicaMetrics(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self.seen: Sequence[ReplicaSnapshot] = ()
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        ready = _gauge("ready", "1 where the engine is ready")
        requests = _gauge("outstanding_requests", "Requests at the engine")
        tokens = _gauge("outstanding_tokens", "Work at the engine, in tokens")
        warmth = _gauge("warmth_ratio", "Share of its work that the engine gets while it starts")
        breaker = _gauge("breaker", "1 for the state in which the engine's circuit breaker is", "state")
        ejections = _counter("ejections", "Times that the engine was ejected")
        calls = _counter("calls", "Requests that the engine answered, failed, or was left with", "outcome")
        for replica in self.seen:
            url = replica.url
            ready.add_metric([url], replica.is_ready)
            requests.add_metric([url], replica.requests)
            tokens.add_metric([url], replica.outstanding)
            warmth.add_metric([url], replica.warmth)
            for state in get_args(State):
                breaker.add_metric([url, state], state == replica.breaker)
            ejections.add_metric([url], replica.ejections)
            for outcome, count in replica.calls.items():
                calls.add_metric([url, outcome], count)
        yield from (ready, requests, tokens, warmth, breaker, ejections, calls)

    def describe(self) -> Iterable[Metric]:
        return self.collect()


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"kimi_serve_replica_{name}", text, labels=("replica", *labels))


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"kimi_serve_replica_{name}", text, labels=("replica", *labels))
