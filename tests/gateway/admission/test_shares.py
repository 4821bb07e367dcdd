"""What each class gets of an engine that is asked for too much: a simulation over the queue, in simulated time."""

import random
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean

import pytest

from kimi_serve.gateway.admission.fair_queue import FairQueue
from kimi_serve.gateway.priority import PRIORITIES, SHARES, Priority

PER_SECOND = 10_000  # tokens that the engine does
LARGEST = 20_000


@dataclass
class Seen:
    work: Counter[Priority] = field(default_factory=Counter)  # tokens done
    waits: dict[Priority, list[float]] = field(default_factory=lambda: {name: [] for name in PRIORITIES})

    def share(self, name: Priority) -> float:
        return self.work[name] / self.work.total()


def simulate(load: Mapping[Priority, float], sizes: Mapping[Priority, int], seconds: int, seed: int = 1) -> Seen:
    """`load`: what a class asks for, as a multiple of all that the engine can do; `sizes`: mean tokens of a request."""
    chance, queue, seen = random.Random(seed), FairQueue[float](), Seen()
    now = 0.0
    whens = {name: _poisson(chance, rate * PER_SECOND / sizes[name], seconds) for name, rate in load.items()}
    arrivals = deque(sorted((when, name) for name, of_class in whens.items() for when in of_class))
    while now < seconds and (arrivals or queue):
        while arrivals and arrivals[0][0] <= now:
            when, name = arrivals.popleft()
            weight = min(LARGEST, max(1, round(chance.expovariate(1 / sizes[name]))))
            queue.push(f"tenant-{chance.randrange(5)}", name, weight, when)
        if not queue:
            now = arrivals[0][0]
            continue
        ticket = queue.take()
        seen.waits[ticket.priority].append(now - ticket.item)
        seen.work[ticket.priority] += ticket.weight
        now += ticket.weight / PER_SECOND
    return seen


def _poisson(chance: random.Random, rate: float, seconds: int) -> list[float]:
    found, now = [], chance.expovariate(rate)
    while now < seconds:
        found.append(now)
        now += chance.expovariate(rate)
    return found


def test_a_flood_of_the_highest_class_starves_no_other() -> None:
    seen = simulate({"high": 3.0, "normal": 1.0, "low": 1.0}, dict.fromkeys(PRIORITIES, 500), 300)
    assert seen.share("normal") == pytest.approx(SHARES["normal"] / 100, abs=0.01)
    assert seen.share("low") == pytest.approx(SHARES["low"] / 100, abs=0.01)


def test_a_flood_of_the_lowest_class_takes_no_more_than_its_share_from_the_highest() -> None:
    """Its requests are forty times as large; shares that counted turns would give it two thirds of the engine."""
    seen = simulate({"high": 3.0, "low": 5.0}, {"high": 500, "low": 20_000}, 600)
    assert seen.share("low") == pytest.approx(SHARES["low"] / 100, abs=0.01)


def test_the_highest_class_waits_for_the_others_no_longer_than_one_request_of_each() -> None:
    """It asks for half of the engine; the others for ten times all of it."""
    alone = simulate({"high": 0.5}, {"high": 500}, 600)
    crowded = simulate({"high": 0.5, "normal": 5.0, "low": 5.0}, {"high": 500, "normal": 2000, "low": 20_000}, 600)
    assert len(crowded.waits["high"]) == pytest.approx(len(alone.waits["high"]), rel=0.05)
    assert max(crowded.waits["high"]) < max(alone.waits["high"]) + 2 * 2 * LARGEST / PER_SECOND
    assert mean(crowded.waits["high"]) < mean(alone.waits["high"]) + LARGEST / PER_SECOND


def test_a_lone_request_of_the_lowest_class_waits_no_longer_than_its_share_allows() -> None:
    seen = simulate({"high": 3.0, "low": 0.01}, {"high": 500, "low": 1000}, 2000)
    bound = (LARGEST * 100 / SHARES["low"] + LARGEST) / PER_SECOND
    assert len(seen.waits["low"]) > 100
    assert max(seen.waits["low"]) < bound


def test_what_one_class_does_not_ask_for_goes_to_the_others() -> None:
    seen = simulate({"high": 0.1, "low": 5.0}, dict.fromkeys(PRIORITIES, 500), 300)
    assert seen.share("high") == pytest.approx(0.1, abs=0.02)
    assert seen.work.total() > 0.99 * 300 * PER_SECOND


@pytest.mark.parametrize("seed", range(5))
def test_no_class_gets_less_than_its_share_in_any_window(seed: int) -> None:
    queue, chance = FairQueue[int](), random.Random(seed)
    done: list[tuple[Priority, int]] = []

    def push(name: Priority) -> None:
        queue.push(f"tenant-{chance.randrange(3)}", name, chance.choice((10, 300, 5000, LARGEST)), 0)

    for name in PRIORITIES:
        push(name)
        push(name)
    for _ in range(5000):
        ticket = queue.take()
        done.append((ticket.priority, ticket.weight))
        push(ticket.priority)  # so somebody of every class always waits
    for begin in range(0, 4000, 250):
        window = done[begin : begin + 1000]
        total = sum(weight for _, weight in window)
        for name, percent in SHARES.items():
            got = sum(weight for one, weight in window if one == name)
            assert abs(got - total * percent / 100) <= 2 * LARGEST
