"""Which tenants have a label of their own in metrics: the busiest, so many at most. Knows names and work; no metric."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

OTHER: Final = "other"
_REMEMBERED: Final = 10  # times as many tenants without a label are weighed
_AHEAD: Final = 2  # times as much work moves a tenant up: names that change places often would be new series for ever


class TenantLabels:
    def __init__(self, most: int, *, every_s: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        assert most > 0
        self._most, self._every_s, self._clock = most, every_s, clock
        self._named: dict[str, float] = {}  # work, of which each ranking forgets half
        self._others: dict[str, float] = {}
        self._ranked_at = clock()

    def label(self, name: str) -> str:
        if name not in self._named:
            if len(self._named) >= self._most:
                return OTHER
            self._named[name] = 0.0
        return name

    def worked(self, name: str, amount: float) -> None:
        if self.label(name) == name:
            self._named[name] += amount
        elif name in self._others or len(self._others) < _REMEMBERED * self._most:
            self._others[name] = self._others.get(name, 0.0) + amount

    def rank(self) -> list[str]:
        """Those who lose their label, to others who did more; looks only once in a while."""
        if self._clock() - self._ranked_at < self._every_s:
            return []
        self._ranked_at = self._clock()
        lost = []
        rising = sorted(self._others, key=self._others.__getitem__, reverse=True)
        falling = sorted(self._named, key=self._named.__getitem__)
        for up, down in zip(rising, falling, strict=False):
            if self._others[up] <= _AHEAD * self._named[down]:
                break
            self._named[up] = self._others.pop(up)
            self._others[down] = self._named.pop(down)
            lost.append(down)
        self._named = {name: amount / 2 for name, amount in self._named.items()}
        self._others = {name: amount / 2 for name, amount in self._others.items() if amount >= 1}
        return lost
