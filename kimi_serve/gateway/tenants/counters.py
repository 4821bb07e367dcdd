"""Where usage is counted. Knows one process; counters that gateways share are in redis_counters.py."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import add
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
from kimi_serve.gateway.tenants.spending import Spending

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
    """Usage in this process, in one dictionary entry per account: those are keys that were verified, so few.

    The clock that buckets drain by is monotonic; the wall's says which month it is, and nothing else.
    """

    def __init__(
        self, clock: Clock = time.monotonic, wall: Clock = time.time, spending: Spending | None = None
    ) -> None:
        self._clock, self._wall, self._spending = clock, wall, spending or Spending()
        self._accounts: dict[str, _Account] = {}

    async def take(self, account: str, limits: Limits, cost: Cost) -> Taken | Refused:
        wall = self._wall()
        month = month_of(wall)
        if limits.tokens_per_month is not None:
            await self._spending.know(account, month)
        held = self._accounts.setdefault(account, _Account(at=self._clock()))
        held.drain(limits, self._clock())
        levels = Levels(held.rates, held.running, held.bytes, self._spending.of(account, month))
        if refused := judge(limits, cost, levels, until_next_month(wall)):
            return refused
        held.add(cost)
        self._spending.add(account, month, cost.tokens)
        return Taken(standings(limits, held.rates), partial(self._settle, account, month, limits, cost))

    def _settle(self, account: str, month: str, limits: Limits, cost: Cost, actual: Cost) -> None:
        held = self._accounts[account]
        held.drain(limits, self._clock())
        held.correct(cost, actual)
        # Of the month that was charged, also where another has begun.
        self._spending.add(account, month, actual.tokens - cost.tokens)


@dataclass(slots=True)
class _Account:
    at: float
    rates: Rates = (0.0, 0.0, 0.0, 0.0)
    running: int = 0
    bytes: int = 0

    def drain(self, limits: Limits, now: float) -> None:
        seconds = max(0.0, now - self.at)
        one, two, three, four = map(drained, self.rates, limits.rates(), (seconds,) * 4)
        self.rates, self.at = (one, two, three, four), now

    def add(self, cost: Cost) -> None:
        one, two, three, four = map(add, self.rates, rates_of(cost))
        self.rates = (one, two, three, four)
        self.running += 1
        self.bytes += cost.bytes

    def correct(self, cost: Cost, actual: Cost) -> None:
        one, two, three, four = map(corrected, self.rates, rates_of(cost), rates_of(actual))
        self.rates = (one, two, three, four)
        self.running -= 1
        self.bytes -= cost.bytes
