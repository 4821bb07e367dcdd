"""How many requests may be sent to an engine a second time. Knows numbers; never why."""


class RetryBudget:
    """In any run of n requests at most `percent` % of n and `constant` more are retries: an outage is not doubled."""

    def __init__(self, percent: int = 10, constant: int = 5) -> None:
        assert 0 <= percent <= 100
        assert constant >= 0
        self._percent, self._most = percent, constant * 100
        self._balance = self._most  # in hundredths of a retry

    def count_request(self) -> None:
        """For each request, not for its retries."""
        self._balance = min(self._most, self._balance + self._percent)

    def try_spend(self) -> bool:
        """Whether one retry may go; if so, it is spent."""
        if self._balance < 100:
            return False
        self._balance -= 100
        return True

    @property
    def left(self) -> int:
        return self._balance // 100
