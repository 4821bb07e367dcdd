"""A request's charge, from admission to its end. Knows how a refusal reads; counts nothing itself."""

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from kimi_serve.gateway.cost import NOTHING, Cost
from kimi_serve.gateway.tenants.counters import Counters, Taken
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.limits import Refused, Standing
from kimi_serve.protocol.errors import ApiError

_HEADERS: Final = {"requests": "requests_per_minute", "tokens": "tokens_per_minute"}


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
    """All limits of the key or none. Raises ApiError rate_limited or budget_exhausted."""
    answer = await counters.take(key.account, key.limits, estimate)
    if isinstance(answer, Refused):
        raise refusal(answer)
    return Charge(estimate, answer)


def refusal(refused: Refused) -> ApiError:
    code = "budget_exhausted" if refused.limit == "tokens_per_month" else "rate_limited"
    said = f"This key's limit {refused.limit} is {refused.value}"
    if math.isinf(refused.wait):
        # No Retry-After: a client that obeys it would come back for ever.
        return ApiError(code, f"{said}, and this request alone needs {refused.asked}: make it smaller.")
    wait = max(1, math.ceil(refused.wait))
    return ApiError(
        code,
        f"{said}, and less than the {refused.asked} of this request is left: "
        f"try again in {wait} second{'s' if wait > 1 else ''}.",
        retry_after=refused.wait,
    )


def headers(standings: Mapping[str, Standing]) -> dict[str, str]:
    """OpenAI's names: x-ratelimit-limit-, -remaining- and -reset-, for requests and tokens where they are limited."""
    found = {}
    for short, name in _HEADERS.items():
        if (standing := standings.get(name)) is not None:
            found[f"x-ratelimit-limit-{short}"] = str(standing.limit)
            found[f"x-ratelimit-remaining-{short}"] = str(standing.remaining)
            found[f"x-ratelimit-reset-{short}"] = duration(standing.reset)
    return found


def duration(seconds: float) -> str:
    """As OpenAI writes them: 20ms, 1.5s, 6m0s, 1h0m0s; rounded up, so that waiting it is enough."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest / 1000:g}s"
    return f"{hours}h{minutes}m{shown}" if hours else f"{minutes}m{shown}" if minutes else shown
