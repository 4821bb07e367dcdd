"""Clocks that jump: what counts seconds does not notice, and what needs a date is right again when the date is."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from argon2 import PasswordHasher

from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.tenants import admin
from kimi_serve.gateway.tenants.counters import LocalCounters, Taken
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.limits import Limits, Refused
from kimi_serve.gateway.tenants.verify import Pace, Verifier
from kimi_serve.protocol.errors import ApiError
from tests.gateway.tenants.clocks import NOW, Clock
from tests.gateway.tenants.test_verify import Shelf

DAY = 86_400.0
JUMPS = [-400 * DAY, -3600.0, 3600.0, 400 * DAY]


def take(counters: LocalCounters, limits: Limits, cost: Cost) -> Taken | Refused:
    return asyncio.run(counters.take("account", limits, cost))


@pytest.mark.parametrize("jump", JUMPS)
def test_a_minutes_limit_does_not_notice_the_wall_clock(clock: Clock, wall: Clock, jump: float) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(tokens_per_minute=600)
    assert isinstance(take(counters, limits, Cost(600)), Taken)
    wall.now += jump
    refused = take(counters, limits, Cost(100))
    assert isinstance(refused, Refused)
    assert refused.wait == pytest.approx(10)
    clock.now += 10
    assert isinstance(take(counters, limits, Cost(100)), Taken)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_months_budget_is_what_it_was_when_the_wall_clock_is_right_again(
    clock: Clock, wall: Clock, jump: float
) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(tokens_per_month=100)
    assert isinstance(take(counters, limits, Cost(80)), Taken)
    wall.now += jump
    take(counters, limits, Cost(100))  # of whatever month that was
    wall.now -= jump
    assert isinstance(take(counters, limits, Cost(21)), Refused)
    if abs(jump) > 31 * DAY:
        assert isinstance(take(counters, limits, Cost(20)), Taken)


def test_the_last_request_of_a_month_is_settled_in_it(clock: Clock, wall: Clock) -> None:
    counters, limits = LocalCounters(clock, wall), Limits(tokens_per_month=100)
    wall.now = NOW.replace(day=31, hour=23, minute=59, second=59).timestamp()
    last = take(counters, limits, Cost(100))
    assert isinstance(last, Taken)
    refused = take(counters, limits, Cost(1))
    assert isinstance(refused, Refused)
    assert refused.wait == pytest.approx(1)
    wall.now += 1
    assert isinstance(take(counters, limits, Cost(60)), Taken)
    last.settle(Cost(40))
    assert isinstance(take(counters, limits, Cost(41)), Refused)  # June has 40 left, whatever May gave back
    wall.now -= 1
    assert isinstance(take(counters, limits, Cost(60)), Taken)  # and May has 60


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_monotonic_clock_that_is_not_neither_fills_a_bucket_nor_blocks_it(
    clock: Clock, wall: Clock, jump: float
) -> None:
    """A machine that sleeps, or is moved while it runs."""
    counters, limits = LocalCounters(clock, wall), Limits(requests_per_minute=1)
    assert isinstance(take(counters, limits, Cost()), Taken)
    clock.now += jump
    assert isinstance(take(counters, limits, Cost()), Taken if jump > 0 else Refused)
    clock.now += 60
    assert isinstance(take(counters, limits, Cost()), Taken)


class Door:
    def __init__(self, key: Key, text: str, hasher: PasswordHasher, clock: Clock, wall: Clock) -> None:
        self.shelf, self._text = Shelf(key), text
        self._verifier = Verifier(self.shelf, Pace(), hasher=hasher, clock=clock, wall=wall)

    async def __aenter__(self) -> Door:
        return self

    async def __aexit__(self, *of: object) -> None:
        await self._verifier.__aexit__(None, None, None)

    async def opens(self) -> bool:
        try:
            await self._verifier.verify(self._text)
        except ApiError as error:
            return error.code != "invalid_key"
        return True


@pytest.mark.parametrize("jump", JUMPS)
def test_a_revoked_key_stays_out_whatever_the_clock_says(
    clock: Clock, wall: Clock, hasher: PasswordHasher, jump: float
) -> None:
    made = admin.create("acme", NOW, hasher=hasher)

    async def story() -> None:
        async with Door(made.key, made.plain.reveal(), hasher, clock, wall) as door:
            assert await door.opens()
            door.shelf.keys[made.key.id] = admin.revoke(made.key, NOW)
            wall.now += jump
            clock.now += Pace().refresh
            assert not await door.opens()

    asyncio.run(story())


def test_a_key_expires_by_the_wall_clock_and_works_again_when_that_is_right_again(
    clock: Clock, wall: Clock, hasher: PasswordHasher
) -> None:
    made = admin.create("acme", NOW, expires=NOW + timedelta(days=1), hasher=hasher)

    async def story() -> None:
        async with Door(made.key, made.plain.reveal(), hasher, clock, wall) as door:
            assert await door.opens()
            wall.now += DAY
            assert not await door.opens()
            wall.now -= DAY
            assert await door.opens()

    asyncio.run(story())


@pytest.mark.parametrize("jump", JUMPS)
def test_records_are_read_again_by_the_monotonic_clock(
    clock: Clock, wall: Clock, hasher: PasswordHasher, jump: float
) -> None:
    made = admin.create("acme", NOW, hasher=hasher)

    async def story() -> None:
        async with Door(made.key, made.plain.reveal(), hasher, clock, wall) as door:
            assert await door.opens()
            wall.now += jump
            assert await door.opens()
            assert door.shelf.asked == 1
            clock.now += Pace().refresh
            assert await door.opens()
            assert door.shelf.asked == 2

    asyncio.run(story())
