"""When a replica that fails is left alone, and when it is tried again. Knows outcomes and a clock; never a request.

closed: requests go. open: ejected, none goes. half_open: the back-off is over, one probe may go, and decides.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

State = Literal["closed", "open", "half_open"]

UNHEARD: Final = -1  # the ticket of a request whose outcome tells nothing


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """Opens after `consecutive` failures in a row, or when `share` of the last `window` outcomes are failures."""

    consecutive: int = 5
    share: float = 0.5
    window: int = 20
    first_s: float = 1.0  # the first back-off; each further one doubles
    most_s: float = 60.0  # the longest back-off; also how long it must stay closed for the next to be a first again


class Breaker:
    def __init__(self, limits: BreakerLimits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._outcomes: deque[bool] = deque(maxlen=limits.window)  # True: failed
        self._in_a_row = 0
        self._era = 0  # grows with every opening and closing: outcomes of an earlier era are not news
        self._is_open = False
        self._is_probing = False
        self._until = 0.0
        self.closed_at = clock()
        self.ejections = 0  # since it was last sound for `most_s`

    @property
    def state(self) -> State:
        if not self._is_open:
            return "closed"
        return "open" if self._clock() < self._until else "half_open"

    def allows(self) -> bool:
        return self.state == "closed" or (self.state == "half_open" and not self._is_probing)

    def begin(self) -> int:
        """A ticket to hand back with the outcome. In half_open the first to begin is the probe."""
        if not self.allows():
            return UNHEARD
        self._is_probing = self._is_open
        return self._era

    def succeeded(self, ticket: int) -> None:
        if ticket != self._era:
            return
        if self._is_open:
            self._close()
        self._in_a_row = 0
        self._outcomes.append(False)

    def failed(self, ticket: int) -> None:
        if ticket != self._era:
            return
        self._in_a_row += 1
        self._outcomes.append(True)
        is_full = len(self._outcomes) == self._limits.window
        is_bad = is_full and sum(self._outcomes) >= self._limits.share * self._limits.window
        if self._is_open or is_bad or self._in_a_row >= self._limits.consecutive:
            self._open()

    def abandoned(self, ticket: int) -> None:
        """The client left, so nothing was learned: another may be the probe."""
        if ticket == self._era:
            self._is_probing = False

    def _open(self) -> None:
        now = self._clock()
        if not self._is_open and now - self.closed_at >= self._limits.most_s:
            self.ejections = 0
        back_off_s = min(self._limits.most_s, self._limits.first_s * 2.0 ** min(self.ejections, 30))
        self.ejections += 1
        self._is_open, self._until = True, now + back_off_s
        self._turn_over()

    def _close(self) -> None:
        self._is_open, self.closed_at = False, self._clock()
        self._turn_over()

    def _turn_over(self) -> None:
        self._era += 1
        self._is_probing = False
        self._in_a_row = 0
        self._outcomes.clear()
