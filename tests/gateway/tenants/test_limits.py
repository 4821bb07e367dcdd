"""What fits and what does not, by examples and over everything hypothesis can think of."""

import asyncio
import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.gateway.cost import NOTHING, Cost
from kimi_serve.gateway.tenants import admin
from kimi_serve.gateway.tenants.charge import Charge, LimitReachedError, charge
from kimi_serve.gateway.tenants.counters import LocalCounters, Taken
from kimi_serve.gateway.tenants.headers import anthropic, duration, moment, openai
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.limits import RATE_NAMES, Limits, month_of, rates_of, until_next_month
from kimi_serve.protocol.errors import ApiError
from tests.gateway.tenants.clocks import NOW, Clock

LIMITED = Limits(60, 1000, 500, 10_000, 4, 4096, 50_000)


def key_of(limits: Limits) -> Key:
    return Key("0123456789ab", "acme", "", NOW, "0123456789ab", limits=limits)


def taken(counters: LocalCounters, limits: Limits, cost: Cost) -> Charge:
    return asyncio.run(charge(counters, key_of(limits), cost))


def refused(counters: LocalCounters, limits: Limits, cost: Cost) -> ApiError:
    with pytest.raises(ApiError) as caught:
        taken(counters, limits, cost)
    return caught.value


@pytest.mark.parametrize(
    ("limits", "cost"),
    [
        (Limits(requests_per_minute=1), Cost()),
        (Limits(tokens_per_minute=100), Cost(text_tokens=100)),
        (Limits(image_tokens_per_minute=100), Cost(image_tokens=100)),
        (Limits(pixels_per_minute=100), Cost(pixels=100)),
        (Limits(concurrent_requests=1), Cost()),
        (Limits(bytes_in_flight=100), Cost(bytes=100)),
        (Limits(tokens_per_month=100), Cost(text_tokens=100)),
    ],
    ids=[field.name for field in fields(Limits)],
)
def test_each_limit_takes_what_it_allows_and_refuses_the_next_by_name(
    limits: Limits, cost: Cost, clock: Clock, wall: Clock
) -> None:
    counters = LocalCounters(clock, wall)
    name, value = next((f.name, getattr(limits, f.name)) for f in fields(limits) if getattr(limits, f.name))
    taken(counters, limits, cost)
    error = refused(counters, limits, cost)
    assert error.code == ("budget_exhausted" if name == "tokens_per_month" else "rate_limited")
    assert f"{name} is {value}" in error.message
    assert error.param is None
    assert error.retry_after is not None


def test_a_refusal_charges_no_limit(clock: Clock, wall: Clock) -> None:
    """Pixels alone are too many; of what does fit nothing may be gone."""
    counters = LocalCounters(clock, wall)
    refused(counters, LIMITED, Cost(500, 500, pixels=10_001, bytes=4096))
    taken(counters, LIMITED, Cost(500, 500, pixels=10_000, bytes=4096))


def test_retry_after_is_when_it_fits(clock: Clock, wall: Clock) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(tokens_per_minute=600)
    taken(counters, limits, Cost(text_tokens=600))
    wait = refused(counters, limits, Cost(text_tokens=100)).retry_after
    assert wait == pytest.approx(10)
    clock.now += wait - 0.01
    refused(counters, limits, Cost(text_tokens=100))
    clock.now += 0.01
    taken(counters, limits, Cost(text_tokens=100))


def test_retry_after_is_that_of_the_slowest_limit(clock: Clock, wall: Clock) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(requests_per_minute=60, tokens_per_minute=60)
    for _ in range(60):
        taken(counters, limits, Cost(text_tokens=1))
    error = refused(counters, limits, Cost(text_tokens=30))
    assert error.retry_after == pytest.approx(30)
    assert "tokens_per_minute" in error.message


def test_a_request_that_can_never_fit_is_not_told_to_come_back(clock: Clock, wall: Clock) -> None:
    error = refused(LocalCounters(clock, wall), Limits(tokens_per_minute=100), Cost(text_tokens=101))
    assert error.retry_after is None
    assert "101" in error.message


def test_a_limit_of_zero_allows_requests_that_use_none_of_it(clock: Clock, wall: Clock) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(image_tokens_per_minute=0)
    taken(counters, limits, Cost(text_tokens=5))
    refused(counters, limits, Cost(4, 1))


def test_the_budget_starts_anew_with_the_month_of_utc(clock: Clock, wall: Clock) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(tokens_per_month=100)
    taken(counters, limits, Cost(text_tokens=100))
    error = refused(counters, limits, Cost(text_tokens=1))
    assert error.retry_after == 27 * 86_400 + 12 * 3600  # from the 4th of May, noon
    wall.now += error.retry_after
    taken(counters, limits, Cost(text_tokens=100))


def test_what_was_charged_to_a_month_that_ended_is_not_given_to_the_next(clock: Clock, wall: Clock) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(tokens_per_month=100)
    old = taken(counters, limits, Cost(text_tokens=100))
    wall.now += 40 * 86_400
    taken(counters, limits, Cost(text_tokens=100))
    old.refund()
    refused(counters, limits, Cost(text_tokens=1))


@given(st.integers(0, 4_000_000_000))
def test_a_month_ends_where_the_next_begins(wall: int) -> None:
    ends = wall + until_next_month(wall)
    assert month_of(ends - 1) == month_of(wall) < month_of(ends)


def test_a_charge_is_settled_once(clock: Clock, wall: Clock) -> None:
    counters = LocalCounters(clock, wall)
    charged = taken(counters, LIMITED, Cost(text_tokens=1000, bytes=4096))
    assert charged.settle(Cost(text_tokens=400))
    assert not charged.settle(Cost())
    assert not charged.refund()
    assert not charged.is_open
    standing = taken(counters, LIMITED, Cost(text_tokens=600, bytes=4096)).standings
    assert standing["tokens_per_minute"].remaining == 0


def test_leaving_the_block_refunds_what_was_not_settled(clock: Clock, wall: Clock) -> None:
    counters = LocalCounters(clock, wall)

    async def request() -> None:
        with await charge(counters, key_of(LIMITED), Cost(text_tokens=1000)):
            raise ConnectionResetError

    for _ in range(100):
        with pytest.raises(ConnectionResetError):
            asyncio.run(request())
    taken(counters, LIMITED, Cost(text_tokens=1000))


def test_an_answer_longer_than_estimated_is_paid_for_later(clock: Clock, wall: Clock) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(tokens_per_minute=60)
    taken(counters, limits, Cost(text_tokens=10)).settle(Cost(text_tokens=90))
    assert refused(counters, limits, Cost(text_tokens=1)).retry_after == pytest.approx(31)
    taken(counters, limits, Cost(text_tokens=0))  # what asks for none is not held up


def test_two_keys_of_one_account_share_its_limits(clock: Clock, wall: Clock) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(requests_per_minute=1)
    old = admin.create("acme", NOW, limits=limits).key
    new = replace(old, id="another")
    asyncio.run(charge(counters, old, Cost()))
    with pytest.raises(ApiError):
        asyncio.run(charge(counters, new, Cost()))
    asyncio.run(charge(counters, replace(old, account="someone"), Cost()))


def test_a_clock_that_jumps_back_neither_fills_nor_stops_a_bucket(clock: Clock, wall: Clock) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(requests_per_minute=1)
    taken(counters, limits, Cost())
    clock.now -= 500
    refused(counters, limits, Cost())
    clock.now += 60
    taken(counters, limits, Cost())


def test_headers_have_openais_names_and_forms(clock: Clock, wall: Clock) -> None:
    charged = taken(LocalCounters(clock, wall), LIMITED, Cost(text_tokens=250))
    assert openai(charged.standings) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": "15s",
    }


def test_headers_leave_out_what_is_not_limited(clock: Clock, wall: Clock) -> None:
    standings = taken(LocalCounters(clock, wall), Limits(pixels_per_minute=5), Cost()).standings
    assert openai(standings) == anthropic(standings) == {}


def test_headers_of_messages_have_anthropics_names_and_times(
    clock: Clock, wall: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged = taken(LocalCounters(clock, wall), LIMITED, Cost(text_tokens=250))
    monkeypatch.setattr("time.time", wall)
    assert anthropic(charged.standings) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-requests-reset": "2031-05-04T12:00:01Z",
        "anthropic-ratelimit-tokens-limit": "1000",
        "anthropic-ratelimit-tokens-remaining": "750",
        "anthropic-ratelimit-tokens-reset": "2031-05-04T12:00:15Z",
    }


def test_a_time_is_rounded_up_to_whole_seconds() -> None:
    assert moment(NOW.timestamp() + 0.2) == "2031-05-04T12:00:01Z"


def test_a_refusal_knows_what_is_left(clock: Clock, wall: Clock) -> None:
    counters = LocalCounters(clock, wall)
    taken(counters, LIMITED, Cost(text_tokens=700))
    error = refused(counters, LIMITED, Cost(text_tokens=400))
    assert isinstance(error, LimitReachedError)
    assert error.standings["tokens_per_minute"].remaining == 300
    assert error.standings["requests_per_minute"].remaining == 59


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (0.0201, "21ms"), (1, "1s"), (1.5, "1.5s"), (360, "6m0s"), (3600, "1h0m0s"), (90.25, "1m30.25s")],
)
def test_a_duration_reads_as_openais_do(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


Step = tuple[float, int, str, int]  # seconds that pass, tokens asked, how the oldest charge ends, tokens used
steps = st.lists(
    st.tuples(st.floats(0, 40), st.integers(0, 60), st.sampled_from(["keep", "settle", "refund"]), st.integers(0, 60)),
    max_size=25,
)


@given(steps, st.integers(1, 100))
def test_no_window_admits_more_than_the_burst_and_its_refill(story: list[Step], limit: int) -> None:
    """Nothing is given back here: admitted is used."""
    clock = Clock()
    counters, limits = LocalCounters(clock, Clock(0.0)), Limits(tokens_per_minute=limit)
    admitted: list[tuple[float, int]] = []
    for pause, tokens, _, _ in story:
        clock.now += pause
        if isinstance(take_now(counters, limits, Cost(text_tokens=tokens)), Taken):
            admitted.append((clock.now, tokens))
    for first, (begin, _) in enumerate(admitted):
        total = 0
        for end, tokens in admitted[first:]:
            total += tokens
            assert total <= limit + limit / 60 * (end - begin) + 1e-3


@given(steps, st.integers(1, 100))
def test_what_is_used_in_all_stays_under_burst_and_refill_with_refunds(story: list[Step], limit: int) -> None:
    """Settled and refunded at any later time: from the start on, no more is used than was ever granted."""
    clock = Clock()
    counters, limits = LocalCounters(clock, Clock(0.0)), Limits(tokens_per_minute=limit)
    used, begun = 0, clock.now
    open_ones: list[tuple[Taken, int]] = []
    for pause, tokens, end, actual in story:
        clock.now += pause
        answer = take_now(counters, limits, Cost(text_tokens=tokens))
        if isinstance(answer, Taken):
            used += tokens
            open_ones.append((answer, tokens))
        if open_ones and end != "keep":
            oldest, estimate = open_ones.pop(0)
            actual = 0 if end == "refund" else min(actual, estimate)
            oldest.settle(Cost(text_tokens=actual))
            used += actual - estimate
        assert used <= limit + limit / 60 * (clock.now - begun) + 1e-3


costs = st.builds(Cost, *[st.integers(0, 1000)] * 5)


@given(st.lists(st.tuples(costs, costs), max_size=8))
def test_settling_at_once_leaves_what_charging_the_actual_would(pairs: list[tuple[Cost, Cost]]) -> None:
    limits = Limits(*[100_000] * 7)
    estimated, exact = LocalCounters(Clock(), Clock()), LocalCounters(Clock(), Clock())
    for estimate, actual in pairs:
        first, second = take_now(estimated, limits, estimate), take_now(exact, limits, actual)
        assert isinstance(first, Taken)
        assert isinstance(second, Taken)
        first.settle(actual)
        second.settle(actual)
    assert estimated._accounts == exact._accounts
    assert estimated._spending.of("account", "1970-01") == exact._spending.of("account", "1970-01")


@given(st.lists(costs, min_size=1, max_size=8), st.floats(0, 100))
def test_refunding_all_leaves_nothing_counted(charges: list[Cost], pause: float) -> None:
    clock = Clock()
    counters = LocalCounters(clock, Clock())
    answers = [take_now(counters, Limits(*[100_000] * 7), cost) for cost in charges]
    clock.now += pause
    for answer in answers:
        assert isinstance(answer, Taken)
        answer.settle(NOTHING)
    (account,) = counters._accounts.values()
    assert account.rates == (0, 0, 0, 0)
    assert (account.running, account.bytes, counters._spending.of("account", "1970-01")) == (0, 0, 0)


@given(costs, st.lists(costs, max_size=8), st.builds(Limits, *[st.none() | st.integers(0, 3000)] * 7))
def test_what_fits_depends_on_every_limit_and_a_refusal_changes_nothing(
    asked: Cost, before: list[Cost], limits: Limits
) -> None:
    counters = LocalCounters(Clock(), Clock())
    totals = [0] * 7
    for cost in [*before, asked]:
        more = [*rates_of(cost), 1, cost.bytes, cost.tokens]
        values = [getattr(limits, field.name) for field in fields(Limits)]
        fits = all(
            limit is None or not some or total + some <= limit
            for total, some, limit in zip(totals, more, values, strict=True)
        )
        answer = take_now(counters, limits, cost)
        assert isinstance(answer, Taken) == fits
        if isinstance(answer, Taken):
            totals = [total + some for total, some in zip(totals, more, strict=True)]
        elif answer.limit in RATE_NAMES:
            assert answer.wait > 0 or math.isinf(answer.wait)


def take_now(counters: LocalCounters, limits: Limits, cost: Cost) -> object:
    """Local counters never wait, so one step of the coroutine is all of it: hypothesis runs thousands."""
    try:
        counters.take("account", limits, cost).send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("local counters waited")
