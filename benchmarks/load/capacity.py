"""How many requests a second a server answers within a scenario's limits. Knows rates and shares; sends nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HOLDS: Final = 0.95  # this share of requests within the limits
FILE: Final = "capacity.json"


class CapacityError(RuntimeError):
    """No rate was found that holds, or none that does not."""


@dataclass(frozen=True, slots=True)
class Search:
    """Doubles from `first` until a rate does not hold, then halves the distance `steps` times."""

    first: float = 0.5
    most: float = 1024.0
    steps: int = 4
    tried: dict[float, float] = field(default_factory=dict)  # rate: share of requests within the limits

    def find(self, share_good: Callable[[float], float]) -> float:
        """The largest rate seen to hold, in requests a second. Raises CapacityError."""

        def holds(rate: float) -> bool:
            self.tried[rate] = share_good(rate)
            return self.tried[rate] >= HOLDS

        rate = self.first
        if not holds(rate):
            raise CapacityError(
                f"first: at {rate:g} requests a second only {self.tried[rate]:.0%} were within the limits; "
                "begin lower, or loosen the scenario's limits"
            )
        while holds(2 * rate):
            rate *= 2
            if rate >= self.most:
                raise CapacityError(f"most: {rate:g} requests a second still held; give a higher --most")
        low, high = rate, 2 * rate
        for _ in range(self.steps):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low


def keep(folder: Path, scenario: str, found: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(_kept(folder) | {scenario: round(found, 4)}, indent=1) + "\n")


def known(folder: Path, scenario: str) -> float | None:
    return _kept(folder).get(scenario)


def _kept(folder: Path) -> dict[str, float]:
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {}
