"""When requests are due. Knows a rate and a seed; never what became of a request."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal


def moments(process: Literal["poisson", "constant"], rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds from the beginning at which each request is due: the same for the same seed."""
    draw = random.Random(f"arrivals {seed}")
    at = draw.expovariate(rate) if process == "poisson" else 0.0
    number = 0
    while at < seconds:
        yield at
        number += 1
        # Multiplied rather than added up: half an hour of additions is off by some requests.
        at = at + draw.expovariate(rate) if process == "poisson" else number / rate
