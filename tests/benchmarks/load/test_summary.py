"""From records to figures."""

import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load.summary import distribution, summarize
from tests.benchmarks.load.made import record, run


def test_percentiles_are_numpys_of_the_answered_requests_in_milliseconds(tmp_path: Path) -> None:
    draw = random.Random(3)
    times = [(draw.expovariate(5), draw.expovariate(40)) for _ in range(237)]
    records = [record(n, ttft=ttft, tpot=tpot) for n, (ttft, tpot) in enumerate(times)]
    slow = record(237, "failed", why="timeout")
    found = summarize(run(tmp_path / "run", [*records, slow])).all
    assert found.ttft_ms is not None
    assert found.tpot_ms is not None
    for seen, index in ((found.ttft_ms, 0), (found.tpot_ms, 1)):
        values = [1000 * one[index] for one in times]
        assert seen.count == 237
        assert seen.mean == pytest.approx(np.mean(values), abs=0.01)
        for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
            assert getattr(seen, name) == pytest.approx(np.percentile(values, percent), abs=0.01)


def test_goodput_counts_answers_within_both_limits(tmp_path: Path) -> None:
    """The limits of `chat`: 1 s to the first token, 0.1 s for each after it."""
    records = [
        record(0),
        record(1, ttft=1.5),
        record(2, tpot=0.2),
        record(3, ttft=0.9, tpot=0.09),
        record(4, "refused", why="503 queue_full", retry_after_s=2.0),
        record(5, "cancelled"),
    ]
    found = summarize(run(tmp_path / "run", records))
    assert (found.all.answered, found.all.good) == (4, 2)
    assert found.goodput == 0.2  # in ten seconds
    assert found.share_good == 2 / 5  # a client that leaves says nothing about the server


def test_refused_and_failed_requests_are_told_apart_by_kind(tmp_path: Path) -> None:
    records = [record(n, "refused", why="503 queue_full", retry_after_s=after) for n, after in enumerate((4.0, 1.0))]
    records += [
        record(2, "failed", why="timeout"),
        record(3, "failed", why="timeout"),
        record(4, "failed", why="500 x"),
    ]
    found = summarize(run(tmp_path / "run", records))
    assert found.errors == {"timeout": 2, "500 x": 1}
    assert {why: (one.count, one.retry_after_s) for why, one in found.refusals.items()} == {
        "503 queue_full": (2, (1.0, 4.0))
    }
    assert found.all.ttft_ms is None
    assert found.answered_per_s == found.tokens_per_s == 0


def test_parts_are_told_apart(tmp_path: Path) -> None:
    records = [record(0), record(1, part="images", ttft=3.0)]
    found = summarize(run(tmp_path / "run", records, "mixed"))
    assert list(found.parts) == ["chat", "image", "images"]
    assert [found.parts[name].answered for name in found.parts] == [1, 0, 1]
    assert found.parts["images"].good == 0


def test_throughput_is_from_the_first_start_to_the_last_end(tmp_path: Path) -> None:
    records = [record(n) for n in range(11)]  # 1.0 s of starts, and 0.139 s for the last answer
    found = summarize(run(tmp_path / "run", records))
    assert found.answered_per_s == pytest.approx(11 / 1.139)
    assert found.tokens_per_s == pytest.approx(55 / 1.139)


def test_a_server_that_gets_slower_or_larger_shows_it(tmp_path: Path) -> None:
    found = summarize(run(tmp_path / "run", [record(n, ttft=0.1 * (1 + n // 50)) for n in range(100)]))
    assert found.ttft_p99_ms_by_tenth == [pytest.approx(100.0)] * 5 + [pytest.approx(200.0)] * 5
    assert found.server_mib == (100.0, 102.0, 102.0)


def test_a_client_that_is_late_is_told_of(tmp_path: Path) -> None:
    assert not summarize(run(tmp_path / "in time", [record(n) for n in range(9)])).is_client_late
    late = [record(n, sent_s=n / 10 + 0.06) for n in range(9)]
    assert summarize(run(tmp_path / "late", late)).is_client_late


def test_nothing_has_no_distribution() -> None:
    assert distribution([]) is None
    assert distribution([None]) is None
