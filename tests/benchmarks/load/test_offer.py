"""The loop is open: who is slow is asked no less."""

import gevent
import pytest

from benchmarks.load.conversations import Ask
from benchmarks.load.feed import FeedError
from benchmarks.load.offer import offer
from benchmarks.load.records import Record

DUE = [n / 50 for n in range(25)]


def asks() -> list[Ask]:
    return [Ask(number, "chat", b"") for number in range(len(DUE))]


def answered_after(seconds: float, order: list[str]) -> object:
    def exchange(ask: Ask, due_s: float, start: float) -> Record:
        order.append("sent")
        gevent.sleep(seconds)
        order.append("ended")
        return Record(ask.number, ask.part, due_s, due_s, due_s + seconds, "answered")

    return exchange


def test_requests_start_though_none_before_them_has_ended() -> None:
    order: list[str] = []
    seen: list[Record] = []
    found = offer(DUE, iter(asks()), answered_after(3.0, order), seen.append, most_open=100)  # type: ignore[arg-type]
    assert order == ["sent"] * 25 + ["ended"] * 25
    assert (found.started, found.unstarted, len(seen)) == (25, 0, 25)


def test_more_than_may_be_open_are_counted_and_never_put_off() -> None:
    order: list[str] = []
    seen: list[Record] = []
    found = offer(DUE, iter(asks()), answered_after(3.0, order), seen.append, most_open=5)  # type: ignore[arg-type]
    assert (found.started, found.unstarted) == (5, 20)
    assert [one.number for one in seen] == [0, 1, 2, 3, 4]


def test_a_feed_that_breaks_off_ends_the_run_with_its_reason() -> None:
    def broken() -> object:
        yield asks()[0]
        raise FeedError("requests: 1 of 25 were made")

    with pytest.raises(FeedError, match="1 of 25"):
        offer(DUE, broken(), answered_after(0.0, []), lambda record: None, most_open=9)  # type: ignore[arg-type]
