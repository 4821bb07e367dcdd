"""Counters and histograms as prometheus_client would show them, for one thread. Knows labels and sums; no name of ours.

prometheus_client takes a lock and checks what it is given at every count, and a request makes some thirty.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

S = TypeVar("S")
_NONE: Final[tuple[str, ...]] = ()


class _Family(Collector, Generic[S]):
    """The series of one name, by the values of its labels. Without labels there is one from the start."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name, self._text, self.names = name, text, tuple(labels)
        self._series: dict[tuple[str, ...], S] = {}
        if not labels:
            self._series[_NONE] = self._new()
        registry.register(self)

    def labels(self, *values: str) -> S:
        found = self._series.get(values)
        if found is None:
            assert len(values) == len(self.names)
            found = self._series[values] = self._new()
        return found

    def remove(self, *values: str) -> None:
        self._series.pop(values, None)

    def series(self) -> list[tuple[str, ...]]:
        """The values of labels that were counted so far."""
        return list(self._series)

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def _new(self) -> S:
        raise NotImplementedError


class Count:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Counter(_Family[Count]):
    def inc(self, amount: float = 1) -> None:
        self._series[_NONE].value += amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self.names)
        for values, count in self._series.items():
            family.add_metric(values, count.value)
        yield family

    def _new(self) -> Count:
        return Count()


class Spread:
    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def add(self, counts: Sequence[int], total: float) -> None:
        """Many values at once: how many by the bounds and above, and their sum."""
        self.counts = [have + more for have, more in zip(self.counts, counts, strict=True)]
        self.sum += total


class Histogram(_Family[Spread]):
    def __init__(
        self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._bounds = tuple(map(float, bounds))
        super().__init__(name, text, labels, registry)

    def observe(self, value: float) -> None:
        self._series[_NONE].observe(value)

    def add(self, counts: Sequence[int], total: float) -> None:
        self._series[_NONE].add(counts, total)

    @contextmanager
    def time(self) -> Iterator[None]:
        """Observes the seconds of a block, however it ends."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - began)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self.names)
        for values, spread in self._series.items():
            buckets, total = [], 0
            for bound, count in zip(map(floatToGoString, (*self._bounds, inf)), spread.counts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            family.add_metric(values, buckets, spread.sum)
        yield family

    def _new(self) -> Spread:
        return Spread(self._bounds)
