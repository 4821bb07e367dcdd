"""When to come back, by what has drained."""

import pytest

from kimi_serve.gateway.admission.drain_rate import DrainRate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def worked(clock: Clock, seconds: int, per_second: float) -> DrainRate:
    drain = DrainRate(clock)
    drain.set_busy(True)
    for _ in range(seconds):
        clock.now += 1
        drain.record(per_second)
    return drain


def test_without_history_the_answer_is_a_small_constant() -> None:
    drain = DrainRate(Clock(), unknown_s=2.0)
    assert drain.rate() is None
    assert drain.seconds_for(10**9) == 2.0


def test_a_steady_rate_is_measured_soon_and_stays() -> None:
    assert worked(Clock(), 5, 100.0).rate() == pytest.approx(100.0, rel=0.1)
    assert worked(Clock(), 500, 100.0).rate() == pytest.approx(100.0, rel=0.05)


def test_the_wait_is_the_amount_over_the_rate() -> None:
    assert worked(Clock(), 300, 100.0).seconds_for(2000) == pytest.approx(20.0, rel=0.05)


def test_the_wait_stays_between_its_bounds() -> None:
    drain = worked(Clock(), 300, 100.0)
    assert drain.seconds_for(1) == 1.0
    assert drain.seconds_for(10**9) == 60.0


def test_idle_time_does_not_lower_the_rate() -> None:
    clock = Clock()
    drain = worked(clock, 300, 100.0)
    drain.set_busy(False)
    clock.now += 86_400
    assert drain.rate() == pytest.approx(100.0, rel=0.05)


def test_engines_that_hang_lower_the_rate_while_they_hang() -> None:
    clock = Clock()
    drain = worked(clock, 300, 100.0)
    for _ in range(120):
        clock.now += 1
        drain.rate()
    assert drain.seconds_for(500) == 60.0


def test_the_last_half_minute_counts_most() -> None:
    clock = Clock()
    drain = worked(clock, 300, 100.0)
    for _ in range(90):
        clock.now += 1
        drain.record(10.0)
    assert drain.rate() == pytest.approx(15.0, rel=0.2)


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_jump_of_the_clock_leaves_a_sane_rate(jump: float) -> None:
    clock = Clock()
    drain = worked(clock, 300, 100.0)
    clock.now += jump
    assert 30.0 <= (drain.rate() or 0) <= 110.0
    for _ in range(120):
        clock.now += 1
        drain.record(100.0)
    assert drain.rate() == pytest.approx(100.0, rel=0.1)
