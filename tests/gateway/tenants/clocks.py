"""A clock that tests move, and the moment that it starts at."""

from dataclasses import dataclass
from datetime import UTC, datetime

NOW = datetime(2031, 5, 4, 12, 0, tzinfo=UTC)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now
