"""How many requests may be sent a second time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_serve.gateway.replicas import RetryBudget


def test_a_few_retries_are_allowed_before_any_request() -> None:
    budget = RetryBudget(percent=10, constant=3)
    assert [budget.try_spend() for _ in range(4)] == [True, True, True, False]


def test_in_an_outage_retries_are_a_tenth_of_the_requests_and_the_constant() -> None:
    budget = RetryBudget(percent=10, constant=3)
    retries = 0
    for _ in range(1000):
        budget.count_request()
        retries += budget.try_spend()
    assert 100 <= retries <= 103


def test_a_long_quiet_time_saves_nothing_up() -> None:
    budget = RetryBudget(percent=10, constant=3)
    for _ in range(100_000):
        budget.count_request()
    assert budget.left == 3


@settings(max_examples=25)
@given(st.lists(st.booleans()), st.integers(0, 100), st.integers(0, 5))
def test_no_run_of_requests_is_retried_more_than_allowed(steps: list[bool], percent: int, constant: int) -> None:
    history = []
    budget = RetryBudget(percent, constant)
    for is_request in steps:
        if is_request:
            budget.count_request()
        history.append((is_request, not is_request and budget.try_spend()))
    for start in range(len(history)):
        requests = sum(is_request for is_request, _ in history[start:])
        retries = sum(is_retry for _, is_retry in history[start:])
        assert retries * 100 <= requests * percent + constant * 100
