"""What is left of a key's limits, as response headers. Knows OpenAI's names and Anthropic's; counts nothing.

Each of them says it for requests and for tokens, where these are limited: the limit, what is left of it, and when all
of it is. OpenAI gives that as a duration, Anthropic as a time.
"""

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from kimi_serve.gateway.tenants.limits import Standing

Standings = Mapping[str, Standing]  # by the name of the limit

_NAMES: Final = {"requests": "requests_per_minute", "tokens": "tokens_per_minute"}


def openai(standings: Standings) -> dict[str, str]:
    found = {}
    for short, name in _NAMES.items():
        if (standing := standings.get(name)) is not None:
            found[f"x-ratelimit-limit-{short}"] = str(standing.limit)
            found[f"x-ratelimit-remaining-{short}"] = str(standing.remaining)
            found[f"x-ratelimit-reset-{short}"] = duration(standing.reset)
    return found


def anthropic(standings: Standings) -> dict[str, str]:
    found, now = {}, time.time()
    for short, name in _NAMES.items():
        if (standing := standings.get(name)) is not None:
            found[f"anthropic-ratelimit-{short}-limit"] = str(standing.limit)
            found[f"anthropic-ratelimit-{short}-remaining"] = str(standing.remaining)
            found[f"anthropic-ratelimit-{short}-reset"] = moment(now + standing.reset)
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


def moment(wall: float) -> str:
    """As Anthropic writes them, by RFC 3339; whole seconds, rounded up."""
    return datetime.fromtimestamp(math.ceil(wall - 1e-6), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
