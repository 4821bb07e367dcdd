"""What a key may use, and when it is too much. Knows arithmetic; holds no count and reads no clock.

A limit per minute is a bucket: what was used drains at `limit / 60` a second, and a request fits while the bucket does
not overflow. So a key that was silent for a minute may use its whole minute at once, and over any span of `s` seconds
no more than `limit + limit * s / 60` is admitted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from kimi_serve.gateway.cost import Cost

RATE_NAMES: Final = ("requests_per_minute", "tokens_per_minute", "image_tokens_per_minute", "pixels_per_minute")
# A bucket is a float: after exactly the promised wait it may be off by its last bits.
TOLERANCE: Final = 1e-6
_HOUR_S: Final = 3600

Rates = tuple[float, float, float, float]  # in the order of RATE_NAMES
Amounts = tuple[int, int, int, int]  # alike


@dataclass(frozen=True, slots=True)
class Limits:
    """None is unlimited; 0 allows only requests that use none of it."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompt, images included, and answer
    image_tokens_per_minute: int | None = None
    pixels_per_minute: int | None = None
    concurrent_requests: int | None = None
    bytes_in_flight: int | None = None
    tokens_per_month: int | None = None  # a calendar month of UTC

    def rates(self) -> tuple[int | None, ...]:
        return self.requests_per_minute, self.tokens_per_minute, self.image_tokens_per_minute, self.pixels_per_minute


UNLIMITED: Final = Limits()


@dataclass(frozen=True, slots=True)
class Levels:
    """What is counted against one account at one moment."""

    rates: Rates
    running: int
    bytes: int
    spent: int  # tokens of this month


@dataclass(frozen=True, slots=True)
class Refused:
    limit: str  # a field of Limits
    value: int
    asked: int
    wait: float  # seconds until it would fit; infinite where the request alone is over the limit
    standings: Mapping[str, "Standing"] = field(default_factory=dict)  # as they are without the request


@dataclass(frozen=True, slots=True)
class Standing:
    """One limit per minute after a charge: what is left of it, and the seconds until all of it is."""

    limit: int
    remaining: int
    reset: float


def rates_of(cost: Cost) -> Amounts:
    """What a cost is in each of RATE_NAMES."""
    return cost.requests, cost.tokens, cost.image_tokens, cost.pixels


def drained(used: float, limit: int | None, seconds: float) -> float:
    return 0.0 if limit is None else max(0.0, used - limit / 60 * seconds)


def corrected(used: float, cost: int, actual: int) -> float:
    """A bucket after a request that was charged `cost` turned out to use `actual`."""
    return max(0.0, used + (actual - cost))


def judge(limits: Limits, cost: Cost, levels: Levels, month_ends_in: float) -> Refused | None:
    """Of the limits that `cost` does not fit, the one that takes longest to wait for."""
    found = []
    for name, limit, asked, used in zip(RATE_NAMES, limits.rates(), rates_of(cost), levels.rates, strict=True):
        if limit is not None and asked > 0 and used + asked - limit > TOLERANCE:
            found.append(Refused(name, limit, asked, _wait(asked, limit, (used + asked - limit) * 60 / max(limit, 1))))
    # Who holds a slot or bytes says nothing about when they end, so the client is told to ask again in a second.
    held = (
        ("concurrent_requests", limits.concurrent_requests, 1, levels.running, 1.0),
        ("bytes_in_flight", limits.bytes_in_flight, cost.bytes, levels.bytes, 1.0),
        ("tokens_per_month", limits.tokens_per_month, cost.tokens, levels.spent, month_ends_in),
    )
    for name, limit, asked, count, wait in held:
        if limit is not None and asked > 0 and count + asked > limit:
            found.append(Refused(name, limit, asked, _wait(asked, limit, wait)))
    if not found:
        return None
    return replace(max(found, key=lambda refused: refused.wait), standings=standings(limits, levels.rates))


def standings(limits: Limits, rates: Rates) -> dict[str, Standing]:
    """By the name of the limit; limits that are not set are left out."""
    return {
        name: Standing(limit, max(0, math.floor(limit - used + TOLERANCE)), used * 60 / limit if limit else 0.0)
        for name, limit, used in zip(RATE_NAMES, limits.rates(), rates, strict=True)
        if limit is not None
    }


def month_of(wall: float) -> str:
    return _month(math.floor(wall / _HOUR_S))[0]


def until_next_month(wall: float) -> float:
    return _month(math.floor(wall / _HOUR_S))[1] - wall


@lru_cache(maxsize=8)
def _month(hour: int) -> tuple[str, float]:
    """Its name and its end, of an hour since 1970: months begin with one."""
    at = datetime.fromtimestamp(hour * _HOUR_S, UTC)
    following = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
    return at.strftime("%Y-%m"), following.timestamp()


def _wait(asked: int, limit: int, wait: float) -> float:
    return math.inf if asked > limit else wait
