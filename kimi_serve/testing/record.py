"""What the fake engine remembers: counts, the last requests, who left. Knows no HTTP; its memory is bounded."""

from __future__ import annotations

import base64
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

KEPT_REQUESTS: Final = 64
KEPT_ABORTS: Final = 1024
KEPT_BYTES: Final = 64 << 20  # over all kept bodies; the last one is kept whatever its size


@dataclass(frozen=True, slots=True)
class Received:
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value.decode("latin-1") for key, value in self.headers if key == name.encode()), None)


@dataclass(frozen=True, slots=True)
class Abort:
    """A client that left before its answer was complete."""

    request: int  # counted from 1, in order of arrival
    at: float  # time.monotonic(), which all processes of a machine share
    frames: int  # already sent


@dataclass(slots=True)
class Record:
    count: int = 0
    in_flight: int = 0
    requests: deque[Received] = field(default_factory=deque)
    aborts: deque[Abort] = field(default_factory=lambda: deque(maxlen=KEPT_ABORTS))
    _bytes: int = 0

    def arrived(self, received: Received) -> int:
        self.count += 1
        self.requests.append(received)
        self._bytes += len(received.body)
        while len(self.requests) > KEPT_REQUESTS or (self._bytes > KEPT_BYTES and len(self.requests) > 1):
            self._bytes -= len(self.requests.popleft().body)
        return self.count

    def left(self, request: int, frames: int) -> None:
        self.aborts.append(Abort(request, time.monotonic(), frames))

    def clear(self) -> None:
        """Forgets the past; requests still in flight stay counted as such."""
        self.count, self._bytes = 0, 0
        self.requests.clear()
        self.aborts.clear()

    def as_dict(self, *, bodies: bool) -> dict[str, object]:
        return {
            "count": self.count,
            "in_flight": self.in_flight,
            "aborts": [{"request": one.request, "at": one.at, "frames": one.frames} for one in self.aborts],
            "requests": [_shown(one, body=bodies) for one in self.requests],
        }


def _shown(received: Received, *, body: bool) -> dict[str, object]:
    shown: dict[str, object] = {
        "path": received.path,
        "headers": {key.decode("latin-1"): value.decode("latin-1") for key, value in received.headers},
        "bytes": len(received.body),
    }
    if body:
        shown["body"] = base64.b64encode(received.body).decode()
    return shown
