"""A request's charge, from admission to its end. Knows how a refusal reads; counts nothing itself."""

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from kimi_serve.gateway.cost import NOTHING, Cost
from kimi_serve.gateway.tenants.counters import Counters, Taken
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.limits import Refused, Standing
from kimi_serve.protocol.errors import ApiError


class LimitReachedError(ApiError):
    """rate_limited or budget_exhausted, and how the key's limits stand."""

    def __init__(self, code: str, message: str, standings: Mapping[str, Standing], retry_after: float | None) -> None:
        super().__init__(code, message, retry_after=retry_after)
        self.standings = standings


class Charge:
    """What one request was charged; the first settle or refund counts, later ones do nothing.

    with await charge(counters, key, estimate) as charged:  # refunded on the way out, unless it was settled
        charged.settle(actual)
    """

    def __init__(self, cost: Cost, taken: Taken) -> None:
        self.cost, self.standings = cost, taken.standings
        self._taken: Taken | None = taken

    @property
    def is_open(self) -> bool:
        return self._taken is not None

    def settle(self, actual: Cost) -> bool:
        """Replace the estimate by what was used. Never waits and never fails, so it holds in any `finally`."""
        taken, self._taken = self._taken, None
        if taken is None:
            return False
        taken.settle(actual)
        return True

    def refund(self) -> bool:
        return self.settle(NOTHING)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.refund()


async def charge(counters: Counters, key: Key, estimate: Cost) -> Charge:
    """All limits of the key or none. Raises LimitReachedError."""
    answer = await counters.take(key.account, key.limits, estimate)
    if isinstance(answer, Refused):
        raise refusal(answer)
    return Charge(estimate, answer)


def refusal(refused: Refused) -> LimitReachedError:
    code = "budget_exhausted" if refused.limit == "tokens_per_month" else "rate_limited"
    said = f"This key's limit {refused.limit} is {refused.value}"
    if math.isinf(refused.wait):
        # No Retry-After: a client that obeys it would come back for ever.
        never = f"{said}, and this request alone needs {refused.asked}: make it smaller."
        return LimitReachedError(code, never, refused.standings, None)
    wait = max(1, math.ceil(refused.wait))
    later = f"try again in {wait} second{'s' if wait > 1 else ''}."
    left = f"{said}, and less than the {refused.asked} of this request is left: {later}"
    return LimitReachedError(code, left, refused.standings, refused.wait)
