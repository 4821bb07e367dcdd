"""How fast work gets done, and so when to come back. Knows amounts and a clock; never what the amounts are."""

import math
from collections.abc import Callable
from typing import Final

LONGEST_S: Final = 60.0  # that anybody is told to stay away


class DrainRate:
    """Amount completed per second of work, in which the last `memory_s` seconds count most.

    Only busy time counts: after a quiet night the rate is yesterday's, not zero. A backward step of the clock counts as
    no time and a leap forward as `memory_s`, so that neither a negative nor an absurd wait can come out.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        memory_s: float = 30.0,
        least_s: float = 1.0,
        most_s: float = LONGEST_S,
        unknown_s: float = 2.0,
    ) -> None:
        self._clock = clock
        self._memory_s, self._least_s, self._most_s, self._unknown_s = memory_s, least_s, most_s, unknown_s
        self._done = 0.0  # amount, decayed
        self._worked_s = 0.0  # busy seconds, decayed alike
        self._seen = clock()
        self._is_busy = False

    def set_busy(self, is_busy: bool) -> None:
        self._advance()
        self._is_busy = is_busy

    def record(self, amount: float) -> None:
        self._advance()
        self._done += amount

    def rate(self) -> float | None:
        """Amount per second; None before there is a second of work to judge by."""
        self._advance()
        return self._done / self._worked_s if self._worked_s >= 1.0 else None

    def seconds_for(self, amount: float) -> float:
        """When this amount will have drained, for Retry-After: between `least_s` and `most_s`."""
        rate = self.rate()
        if rate is None:
            return self._unknown_s
        if rate * self._most_s <= amount:
            return self._most_s
        return max(self._least_s, amount / rate)

    def _advance(self) -> None:
        now = self._clock()
        elapsed = min(max(0.0, now - self._seen), self._memory_s)
        self._seen = now
        if self._is_busy and elapsed:
            decay = math.exp(-elapsed / self._memory_s)
            self._done *= decay
            self._worked_s = self._worked_s * decay + self._memory_s * (1 - decay)
