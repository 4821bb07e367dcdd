"""Whether a line is asked again, and when. Knows an answer's status and headers; asks nobody."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from kimi_serve.protocol.errors import ApiError

LONGEST_PAUSE_S: Final = 30.0
_COME_BACK: Final = (429, 503)


@dataclass(slots=True)
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def retry_after(self) -> float | None:
        value = self.headers.get("retry-after", "")
        return float(value) if value.isdigit() else None

    @classmethod
    def refused(cls, error: ApiError) -> Answer:
        return cls(error.status, error.headers(), msgspec.json.encode(error.envelope()))


@dataclass(slots=True)
class Patience:
    """One line's: who is told to come back does so as long as it takes; who finds a fault, so many times."""

    attempts: int
    retry_s: float
    _failures: int = 0

    def pause(self, answer: Answer) -> float | None:
        """Seconds until the line is asked again; None where the answer counts."""
        if answer.status in _COME_BACK and answer.retry_after is not None:
            return min(answer.retry_after, LONGEST_PAUSE_S)
        if answer.status < 500 or self._failures + 1 >= self.attempts:
            return None
        self._failures += 1
        return min(self.retry_s * (1 << self._failures), LONGEST_PAUSE_S)
