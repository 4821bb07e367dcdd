"""How fast a line moves. Knows amounts, a clock and how many places the engines have; never who waits."""

from collections.abc import Callable

from kimi_serve.gateway.admission.drain_rate import DrainRate


class Pace:
    """Amount that leaves one line per second in which somebody stands there, for each place at the engines.

    Measured at the line itself: engines do less work when they have little to do, and a class gets less than all they
    do. For each place, so that it holds when engines come or go.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._rate = DrainRate(clock)
        self._left = 0  # requests
        self._is_waiting = False

    def set_waiting(self, is_waiting: bool) -> None:
        """Whether somebody stands in the line while there are engines."""
        if is_waiting != self._is_waiting:
            self._is_waiting = is_waiting
            self._rate.set_busy(is_waiting)

    def left(self, amount: float, places: int) -> None:
        """A request went to one of so many places. One that passed without a wait says nothing about the line."""
        if self._is_waiting and places:
            self._left += 1
            self._rate.record(amount / places)

    def seconds_for(self, amount: float, places: int, outstanding: int) -> float | None:
        """How long this amount takes to leave, unbounded; None where that is unknown.

        Requests that began together end together, and until then the line stands still. So nothing is known before as
        many have left it as are at the engines.
        """
        rate = self._rate.rate()
        if not amount:
            return 0.0
        if not places or rate is None or self._left < outstanding:
            return None
        return amount / (rate * places) if rate else float("inf")
