"""Which tenants have a label of their own."""

import pytest

from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.tenant_labels import OTHER, TenantLabels


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ranked(labels: TenantLabels, clock: Clock) -> list[str]:
    clock.now += 300
    return labels.rank()


def test_the_first_ones_are_named_and_the_others_are_other(clock: Clock) -> None:
    labels = TenantLabels(2, clock=clock)
    assert [labels.label(name) for name in ("a", "b", "c", "a")] == ["a", "b", OTHER, "a"]


def test_who_works_twice_as_much_takes_the_label_of_who_works_least(clock: Clock) -> None:
    labels = TenantLabels(2, clock=clock)
    for name, amount in {"a": 100, "b": 10, "c": 21, "d": 20}.items():
        labels.worked(name, amount)
    assert ranked(labels, clock) == ["b"]
    assert [labels.label(name) for name in ("a", "b", "c", "d")] == ["a", OTHER, "c", OTHER]


def test_twice_as_much_is_needed_so_that_no_label_changes_all_the_time(clock: Clock) -> None:
    labels = TenantLabels(1, clock=clock)
    for round_ in range(10):
        labels.worked("a", 10 + round_ % 2)
        labels.worked("b", 11 - round_ % 2)
        assert ranked(labels, clock) == []


def test_what_was_long_ago_counts_less_and_less(clock: Clock) -> None:
    labels = TenantLabels(1, clock=clock)
    labels.worked("a", 1000)
    for _ in range(10):
        ranked(labels, clock)
    labels.worked("b", 10)
    assert ranked(labels, clock) == ["a"]


def test_it_looks_once_in_a_while(clock: Clock) -> None:
    labels = TenantLabels(1, every_s=300, clock=clock)
    labels.worked("a", 1)
    labels.worked("b", 100)
    clock.now = 299
    assert labels.rank() == []
    clock.now = 300
    assert labels.rank() == ["a"]


def test_any_number_of_tenants_takes_bounded_memory(clock: Clock) -> None:
    labels = TenantLabels(3, clock=clock)
    for number in range(10_000):
        labels.worked(f"tenant-{number}", 5)
    assert len(labels._named) == 3
    assert len(labels._others) == 30
    for _ in range(4):
        ranked(labels, clock)
    assert labels._others == {}


def test_metrics_have_so_many_tenants_and_other_however_many_come(clock: Clock) -> None:
    metrics = Metrics(TenantLabels(3, clock=clock))
    for number in range(50):
        name = f"tenant-{number}"
        metrics.worked(name, 2**number)
        for counter in metrics.of_tenants:
            values = ["x"] * (len(counter.names) - 1)
            counter.labels(*values, metrics.tenant(name)).inc()
    assert tenants_of(metrics) == {"tenant-0", "tenant-1", "tenant-2", OTHER}
    clock.now += 300
    metrics.measure([])
    assert tenants_of(metrics) == {OTHER}, "those that lost their label have no series any more"
    assert {metrics.tenant(f"tenant-{number}") for number in range(50)} == {
        "tenant-30",
        "tenant-31",
        "tenant-32",
        OTHER,
    }


def tenants_of(metrics: Metrics) -> set[str]:
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {sample.labels["tenant"] for sample in samples if "tenant" in sample.labels}
