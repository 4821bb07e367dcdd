"""Where usage is counted. Knows one process; counters that gateways share are in redis_counters.py."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.tenants.limits import (
    Levels,
    Limits,
    Rates,
    Refused,
    Standing,
    corrected,
    drained,
    judge,
    month_of,
    rates_of,
    standings,
    until_next_month,
)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Taken:
    """A cost that was counted. `settle` replaces it by the actual one; it is to be called once, and never waits."""

    standings: Mapping[str, Standing]
    settle: Callable[[Cost], None]


class Counters(Protocol):
    async def take(self, account: str, limits: Limits, cost: Cost) -> Taken | Refused:
        """Count `cost` against all limits or against none. Raises CountersError."""


class LocalCounters:
    """Usage in this process, in one dictionary entry per account: those are keys that were verified, so few."""

    def __init__(self, clock: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._accounts: dict[str, _Account] = {}

    async def take(self, account: str, limits: Limits, cost: Cost) -> Taken | Refused:
        held = self._accounts.setdefault(account, _Account(at=self._clock()))
        wall = self._wall()
        levels = held.levels(limits, self._clock(), month_of(wall))
        if refused := judge(limits, cost, levels, until_next_month(wall)):
            return refused
        held.add(cost)
        return Taken(standings(limits, held.rates), partial(self._settle, held, limits, cost, held.month))

    def _settle(self, held: "_Account", limits: Limits, cost: Cost, month: str, actual: Cost) -> None:
        held.levels(limits, self._clock(), month_of(self._wall()))
        held.correct(cost, actual, month)


@dataclass(slots=True)
class _Account:
    at: float
    rates: Rates = (0.0, 0.0, 0.0, 0.0)
    running: int = 0
    bytes: int = 0
    month: str = ""
    spent: int = 0

    def levels(self, limits: Limits, now: float, month: str) -> Levels:
        """Drained to `now`, and turned to `month`."""
        seconds = max(0.0, now - self.at)
        one, two, three, four = (
            drained(u, limit, seconds) for u, limit in zip(self.rates, limits.rates(), strict=True)
        )
        self.rates, self.at = (one, two, three, four), now
        if month != self.month:
            self.month, self.spent = month, 0
        return Levels(self.rates, self.running, self.bytes, self.spent)

    def add(self, cost: Cost) -> None:
        one, two, three, four = (used + asked for used, asked in zip(self.rates, rates_of(cost), strict=True))
        self.rates = (one, two, three, four)
        self.running += 1
        self.bytes += cost.bytes
        self.spent += cost.tokens

    def correct(self, cost: Cost, actual: Cost, month: str) -> None:
        one, two, three, four = map(corrected, self.rates, rates_of(cost), rates_of(actual))
        self.rates = (one, two, three, four)
        self.running -= 1
        self.bytes -= cost.bytes
        if month == self.month:  # what was charged to a month that has ended stays with it
            self.spent += actual.tokens - cost.tokens
