"""Counters that gateways share, while they answer; this process's own, while they do not. Knows neither's workings.

While it falls back, each gateway grants a key's limits by itself, and counts a month's budget from what it saw itself.
"""

import logging
import time
from collections.abc import Callable

from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.tenants.counters import Counters, Taken
from kimi_serve.gateway.tenants.errors import CountersError
from kimi_serve.gateway.tenants.limits import Limits, Refused

logger = logging.getLogger(__name__)


class FallbackCounters:
    """`pause`: seconds after a failure in which the shared counters are not asked; then one request asks again."""

    def __init__(
        self, shared: Counters, local: Counters, *, pause: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shared, self._local, self._pause, self._clock = shared, local, pause, clock
        self._ask_again: float | None = None  # when; None while the shared counters answer
        self.fallbacks = 0  # requests that were counted here instead

    @property
    def is_falling_back(self) -> bool:
        return self._ask_again is not None

    async def take(self, account: str, limits: Limits, cost: Cost) -> Taken | Refused:
        now = self._clock()
        if self._ask_again is None or now >= self._ask_again:
            if self._ask_again is not None:
                self._ask_again = now + self._pause  # the others need not wait for the one who asks
            try:
                answer = await self._shared.take(account, limits, cost)
            except CountersError as error:
                if self._ask_again is None:
                    logger.warning("shared counters fail, counting locally", extra={"reason": str(error)})
                self._ask_again = self._clock() + self._pause
            else:
                if self._ask_again is not None:
                    logger.info("shared counters answer again")
                self._ask_again = None
                return answer
        self.fallbacks += 1
        return await self._local.take(account, limits, cost)
