"""Whole runs: locust in a process of its own, a gateway, a fake engine that waits as it is told."""

import csv
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from benchmarks.load.locusts import LocustError
from benchmarks.load.records import Run
from benchmarks.load.summary import summarize
from tests.benchmarks.load.conftest import Stage

TTFT_S, ITL_S, TOKENS = 1.5, 0.4, 6
SCENARIO = """
[mine]
about = "a test"
rate = 1.0
process = "constant"
seconds = 2
timeout_s = {timeout_s}
limits = {{ ttft_s = 30.0, tpot_s = 10.0 }}
parts = [{{ name = "chat", kind = "text", words = [3, 9], answer_tokens = 64{more} }}]
"""


def scenario(folder: Path, timeout_s: float = 60.0, more: str = "") -> Path:
    file = folder / "mine.toml"
    file.write_text(SCENARIO.format(timeout_s=timeout_s, more=more))
    return file


def locusts_rows(run: Run, table: str) -> dict[tuple[str, str], dict[str, str]]:
    with (run.folder / f"locust_{table}.csv").open() as file:
        return {(row.get("Type", row.get("Method", "")), row["Name"]): row for row in csv.DictReader(file)}


def test_figures_are_what_the_engine_was_told_and_locust_shows_them(
    stage: Callable[..., Stage], tmp_path: Path
) -> None:
    opened = stage({"ttft_s": TTFT_S, "itl_s": ITL_S, "tokens": TOKENS})
    run = opened.load("mine", scenario(tmp_path), rate=4)
    found = summarize(run).all
    assert (len(run.records), found.answered, found.good) == (8, 8, 8)
    assert found.ttft_ms is not None
    fastest = min(one.ttft_s for one in run.records if one.ttft_s is not None)
    # Never less than the engine waits; and of all eight one at least has less of anything else than that.
    assert TTFT_S <= fastest < 2 * TTFT_S
    paces = [one.tpot_s for one in run.records if one.tpot_s is not None]
    assert min(paces) < 3 * ITL_S
    assert max(paces) > 0.9 * ITL_S
    assert all(one.answer_tokens == len(one.token_s) == TOKENS for one in run.records)
    rows = locusts_rows(run, "stats")
    counts = {kind: int(rows[kind, "chat"]["Request Count"]) for kind in ("TTFT", "ITL", "E2E")}
    assert counts == {"TTFT": 8, "ITL": 8 * (TOKENS - 1), "E2E": 8}
    assert float(rows["TTFT", "chat"]["Min Response Time"]) == pytest.approx(1000 * fastest, abs=1)
    assert float(rows["E2E", "chat"]["Min Response Time"]) >= 1000 * (TTFT_S + (TOKENS - 1) * ITL_S) * 0.9
    assert run.samples, "the gateway's own figures are kept beside"
    assert run.samples[0].values["process_resident_memory_bytes"] > 2**20
    opened.front.assert_idle()


def test_a_stalled_engine_is_asked_no_less(stage: Callable[..., Stage], tmp_path: Path) -> None:
    """All have been sent before the first one ends, which a client that waits for answers cannot do."""
    opened = stage({"fail": "hang_before_headers"})
    run = opened.load("mine", scenario(tmp_path, timeout_s=7.0), rate=10)
    assert len(run.records) == run.number("due") == 20
    assert max(one.sent_s for one in run.records) < min(one.end_s for one in run.records)
    assert summarize(run).errors == {"timeout": 20}
    opened.front.assert_idle()


def test_clients_that_leave_leave_nothing_behind(stage: Callable[..., Stage], tmp_path: Path) -> None:
    """Before the first token and within the answer; then every counter of what is outstanding is at zero."""
    opened = stage({"ttft_s": 0.5, "itl_s": 0.5, "tokens": 60})
    cancel = ", cancel = { share = 1.0, after_s = [0.1, 2.0] }"
    run = opened.load("mine", scenario(tmp_path, more=cancel), rate=6)
    found = summarize(run)
    assert (found.all.cancelled, found.all.failed, found.errors) == (12, 0, {})
    opened.front.assert_idle()
    engine = httpx.get(f"{opened.engine}/record", trust_env=False).json()
    assert engine["in_flight"] == 0
    assert len(engine["aborts"]) == engine["count"] > 0
    assert int(locusts_rows(run, "stats")["cancelled", "chat"]["Request Count"]) == 12


def test_overload_is_refused_with_a_time_and_is_no_failure(stage: Callable[..., Stage], tmp_path: Path) -> None:
    admission = {"requests": 1, "waiting": 1, "deadline_s": 1.0}
    opened = stage({"ttft_s": 0.6, "tokens": 2}, admission=admission)
    run = opened.load("mine", scenario(tmp_path), rate=12)
    found = summarize(run)
    assert (found.all.failed, found.errors) == (0, {})
    assert found.all.refused > found.all.answered > 0
    assert set(found.refusals) <= {"503 queue_full", "503 queue_timeout"}
    assert all(one.retry_after_s[0] >= 1 for one in found.refusals.values())
    assert locusts_rows(run, "failures") == {}
    opened.front.assert_idle()


def test_a_body_that_is_refused_unread_is_refused_and_no_broken_connection(
    stage: Callable[..., Stage], tmp_path: Path
) -> None:
    """Two bodies of some 130 KB fit at once: the gateway refuses a third that has not come yet."""
    opened = stage({"ttft_s": 0.6, "tokens": 2}, body={"in_flight_bytes": 320_000})
    file = scenario(tmp_path)
    file.write_text(file.read_text().replace('kind = "text"', 'kind = "images", sizes = [[640, 640]]'))
    run = opened.load("mine", file, rate=12)
    found = summarize(run)
    assert (found.all.failed, found.errors) == (0, {})
    assert set(found.refusals) == {"503 bytes_in_flight"}
    assert found.all.answered > 0
    opened.front.assert_idle()


def test_streams_that_break_are_failures_with_their_code(stage: Callable[..., Stage], tmp_path: Path) -> None:
    opened = stage({"fail": "die_mid_stream", "after_tokens": 3})
    run = opened.load("mine", scenario(tmp_path), rate=2)
    assert summarize(run).errors == {"stream: upstream_error": 4}
    assert [len(one.token_s) for one in run.records] == [3] * 4
    assert ("E2E", "chat") in locusts_rows(run, "failures")


def test_a_run_that_cannot_begin_says_why(stage: Callable[..., Stage], tmp_path: Path) -> None:
    opened = stage()
    with pytest.raises(LocustError, match="of_capacity: 2 times a capacity that is not known"):
        opened.load("overload")
