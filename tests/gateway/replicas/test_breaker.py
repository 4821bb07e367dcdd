"""When a replica that fails is left alone, and when it is tried again."""

import pytest

from kimi_serve.gateway.replicas.breaker import Breaker, BreakerLimits

LIMITS = BreakerLimits(consecutive=3, share=0.5, window=10, first_s=1.0, most_s=8.0)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ejected(clock: Clock) -> Breaker:
    breaker = Breaker(LIMITS, clock)
    for _ in range(3):
        breaker.failed(breaker.begin())
    return breaker


def test_failures_in_a_row_eject_it() -> None:
    breaker = Breaker(LIMITS, Clock())
    for _ in range(2):
        breaker.failed(breaker.begin())
    assert breaker.allows()
    breaker.failed(breaker.begin())
    assert (breaker.state, breaker.allows()) == ("open", False)


def test_a_success_between_failures_breaks_the_row() -> None:
    breaker = Breaker(LIMITS, Clock())
    for failed in (True, True, False, True, True):
        (breaker.failed if failed else breaker.succeeded)(breaker.begin())
    assert breaker.state == "closed"


def test_a_high_share_of_failures_ejects_it_once_there_is_enough_to_judge_by() -> None:
    breaker = Breaker(LIMITS, Clock())
    states = []
    for number in range(10):
        (breaker.succeeded if number % 2 == 0 else breaker.failed)(breaker.begin())
        states.append(breaker.state)
    assert states == ["closed"] * 9 + ["open"]


def test_after_the_back_off_one_probe_may_go() -> None:
    clock = Clock()
    breaker = ejected(clock)
    clock.now += 0.9
    assert not breaker.allows()
    clock.now += 0.2
    assert (breaker.state, breaker.allows()) == ("half_open", True)
    breaker.begin()
    assert not breaker.allows()


def test_a_probe_that_succeeds_closes_it() -> None:
    clock = Clock()
    breaker = ejected(clock)
    clock.now += 1.5
    breaker.succeeded(breaker.begin())
    assert (breaker.state, breaker.allows(), breaker.closed_at) == ("closed", True, 1.5)


def test_each_failed_probe_doubles_the_back_off_up_to_a_limit() -> None:
    clock = Clock()
    breaker = ejected(clock)
    waits = []
    for _ in range(5):
        waited = 0.0
        while not breaker.allows():
            clock.now += 0.25
            waited += 0.25
        waits.append(waited)
        breaker.failed(breaker.begin())
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0]


@pytest.mark.parametrize(("sound_s", "back_off_s"), [(1.0, 2.0), (8.0, 1.0)])
def test_the_back_off_starts_again_from_the_first_only_after_a_sound_time(sound_s: float, back_off_s: float) -> None:
    clock = Clock()
    breaker = ejected(clock)
    clock.now += 1.0
    breaker.succeeded(breaker.begin())
    clock.now += sound_s
    for _ in range(3):
        breaker.failed(breaker.begin())
    clock.now += back_off_s - 0.1
    assert breaker.state == "open"
    clock.now += 0.2
    assert breaker.state == "half_open"


def test_a_probe_whose_client_left_frees_the_place_for_another() -> None:
    clock = Clock()
    breaker = ejected(clock)
    clock.now += 1.5
    breaker.abandoned(breaker.begin())
    assert (breaker.state, breaker.allows()) == ("half_open", True)


def test_outcomes_of_requests_from_before_the_ejection_are_not_news() -> None:
    clock = Clock()
    breaker = Breaker(LIMITS, clock)
    old = [breaker.begin() for _ in range(10)]
    for ticket in old[:3]:
        breaker.failed(ticket)
    clock.now += 1.5
    breaker.begin()
    for ticket in old[3:6]:
        breaker.failed(ticket)
    breaker.succeeded(old[6])
    breaker.abandoned(old[7])
    assert (breaker.state, breaker.allows(), breaker.ejections) == ("half_open", False, 1)


def test_one_that_goes_although_it_may_not_tells_nothing() -> None:
    clock = Clock()
    breaker = ejected(clock)
    breaker.succeeded(breaker.begin())
    assert breaker.state == "open"
