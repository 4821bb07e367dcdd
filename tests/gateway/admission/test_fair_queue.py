"""The order in which waiting requests go."""

import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from types import FrameType

from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_serve.gateway.admission.fair_queue import FairQueue
from kimi_serve.gateway.priority import PRIORITIES, SHARES, Priority


def order(queue: FairQueue[str]) -> list[str]:
    return [queue.take().item for _ in range(len(queue))]


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in "abcd":
        queue.push("t", "normal", 100_000, name)
    assert order(queue) == ["a", "b", "c", "d"]


def test_tenants_share_by_weight_and_not_by_number_of_requests() -> None:
    queue: FairQueue[str] = FairQueue(quantum=1000)
    for _ in range(1000):
        queue.push("small", "normal", 100, "small")
    for _ in range(100):
        queue.push("large", "normal", 1000, "large")
    served = Counter(islice(order(queue), 550))
    assert served["small"] * 100 == served["large"] * 1000


def test_a_flood_of_one_tenant_does_not_delay_another() -> None:
    queue: FairQueue[str] = FairQueue(quantum=1000)
    for _ in range(5000):
        queue.push("flood", "normal", 500, "flood")
    queue.push("calm", "normal", 500, "calm")
    assert "calm" in order(queue)[:3]


def test_a_request_far_above_the_quantum_gets_its_turn() -> None:
    queue: FairQueue[str] = FairQueue(quantum=1000)
    queue.push("large", "normal", 50_000, "large")
    for _ in range(200):
        queue.push("small", "normal", 1000, "small")
    assert 45 <= order(queue).index("large") <= 55


def test_credit_is_not_saved_up_by_leaving_and_coming_back() -> None:
    queue: FairQueue[str] = FairQueue(quantum=10_000)
    for _ in range(50):
        queue.push("sparing", "normal", 1, "sparing")
        assert queue.take().item == "sparing"
    for _ in range(40):
        queue.push("sparing", "normal", 1000, "sparing")
        queue.push("other", "normal", 1000, "other")
    assert Counter(order(queue)[:20]) == {"sparing": 10, "other": 10}


def test_higher_classes_go_first() -> None:
    queue: FairQueue[str] = FairQueue()
    for priority in reversed(PRIORITIES):
        queue.push("t", priority, 10, priority)
    assert order(queue) == list(PRIORITIES)


def test_classes_that_wait_get_their_shares_of_the_work() -> None:
    queue: FairQueue[str] = FairQueue()
    for priority in PRIORITIES:
        for _ in range(1000):
            queue.push("t", priority, 10, priority)
    served = Counter(order(queue)[:1000])
    assert all(abs(served[name] - 10 * SHARES[name]) <= 1 for name in SHARES)


def test_a_share_is_of_the_work_and_not_of_the_turns() -> None:
    """A class of few large requests gets no more than one of many small ones."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(10_000):
        queue.push("t", "high", 10, "high")
    for _ in range(10):
        queue.push("t", "low", 1000, "low")
    assert Counter(order(queue)[: 9500 + 5])["low"] in (4, 5)


def test_a_large_request_of_the_lowest_class_goes_once_its_class_has_earned_it() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("t", "low", 1000, "low")
    for _ in range(5000):
        queue.push("t", "high", 10, "high")
    assert order(queue).index("low") * 10 == 1000 * 100 // SHARES["low"]


def test_a_class_earns_nothing_while_nobody_waits_in_it() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(500):
        queue.push("t", "high", 10, "high")
    for _ in range(200):
        queue.take()
    queue.push("t", "low", 10, "low")
    assert order(queue).index("low") == 20


def test_what_a_class_got_while_no_higher_one_waited_is_no_debt() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.push("t", "low", 10, "low")
    for _ in range(50):
        queue.take()
    for _ in range(50):
        queue.push("t", "high", 10, "high")
    assert order(queue).index("low") <= 20


def test_a_class_that_is_due_and_whose_last_request_leaves_is_not_waited_for() -> None:
    queue: FairQueue[str] = FairQueue()
    due = queue.push("t", "low", 10, "low")
    for _ in range(30):
        queue.push("t", "high", 10, "high")
    for _ in range(20):
        queue.take()
    assert queue.head() is due
    queue.remove(due)
    assert order(queue) == ["high"] * 10


def test_the_head_stays_the_head_until_something_changes() -> None:
    queue: FairQueue[str] = FairQueue(quantum=10)
    for name in "abc":
        queue.push(name, "normal", 35, name)
    head = queue.head()
    assert all(queue.head() is head for _ in range(10))
    assert queue.take() is head


def test_a_removed_request_is_not_served_and_is_removed_once() -> None:
    queue: FairQueue[str] = FairQueue()
    tickets = [queue.push("t", "normal", 10, name) for name in "abc"]
    assert queue.remove(tickets[1])
    assert not queue.remove(tickets[1])
    assert order(queue) == ["a", "c"]
    assert not queue.remove(tickets[0])
    assert queue.head() is None


def test_removing_the_head_hands_its_turn_to_the_next_tenant() -> None:
    queue: FairQueue[str] = FairQueue(quantum=1000)
    first = queue.push("a", "normal", 1000, "a")
    for _ in range(3):
        queue.push("b", "normal", 1000, "b")
    queue.push("c", "normal", 1000, "c")
    assert queue.head() is first
    queue.remove(first)
    assert order(queue) == ["b", "c", "b", "b"]


pushes = st.tuples(st.sampled_from("abcd"), st.sampled_from(PRIORITIES), st.integers(1, 30_000))


@settings(max_examples=25)
@given(st.lists(st.one_of(pushes, st.just("take"), st.integers(0, 50))))
def test_counts_agree_with_what_is_in_the_queue(steps: list[tuple[str, Priority, int] | str | int]) -> None:
    queue: FairQueue[int] = FairQueue(quantum=5000, shares={"normal": 60, "low": 30})
    inside = {}
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            inside[number] = queue.push(*step, number)
        elif step == "take" and inside:
            head = queue.head()
            assert head is inside.pop(queue.take().item)
        elif isinstance(step, int) and step in inside:
            assert queue.remove(inside.pop(step))
        assert len(queue) == len(inside) == len(queue.tickets())
        assert queue.load.cost == sum(ticket.weight for ticket in inside.values())
        for tenant in "abcd":
            own = [ticket.weight for ticket in inside.values() if ticket.tenant == tenant]
            assert (queue.tenant(tenant).requests, queue.tenant(tenant).cost) == (len(own), sum(own))
        for priority in PRIORITIES:
            names = [name for name, ticket in inside.items() if ticket.priority == priority]
            oldest = queue.oldest(priority)
            assert (queue.waiting(priority), oldest and oldest.item) == (len(names), min(names, default=None))


def test_ahead_of_a_request_goes_its_class_but_of_each_other_tenant_no_more_than_of_its_own() -> None:
    queue: FairQueue[str] = FairQueue()
    assert queue.ahead("a", "normal", 100) == 0
    for _ in range(10):
        queue.push("a", "normal", 100, "")
    queue.push("a", "high", 5000, "")
    assert queue.ahead("a", "normal", 100) == 1000
    assert queue.ahead("b", "normal", 100) == 200
    assert queue.ahead("b", "low", 100) == 0
    ticket = queue.push("b", "normal", 400, "")
    assert queue.ahead("b", "normal", 100) == 1000
    assert queue.ahead("c", "normal", 100) == 300
    assert (queue.has_more_than_others("a", "normal"), queue.has_more_than_others("b", "normal")) == (True, False)
    assert queue.remove(ticket)
    order(queue)
    assert queue.ahead("a", "normal", 100) == 0


def lines_to_pass(count: int) -> int:
    """Lines of Python that run while `count` requests of a quarter as many tenants come and go."""
    queue: FairQueue[int] = FairQueue()
    ran = 0

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., object]:
        nonlocal ran
        ran += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for number in range(count):
            queue.push(f"tenant-{number % (count // 4)}", PRIORITIES[number % 3], 1 + number * 37 % 20_000, number)
        for _ in range(count):
            queue.head()
            queue.take()
    finally:
        sys.settrace(before)
    assert len(queue) == 0
    return ran


def test_ten_times_the_requests_and_tenants_take_ten_times_the_work() -> None:
    few, many = lines_to_pass(400), lines_to_pass(4_000)
    assert many < 11 * few
