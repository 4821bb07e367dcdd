"""`python -m benchmarks.faults`: what it counts, in a stack of processes, and that it says what was not kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults.inject import faults
from benchmarks.faults.tally import row, table
from benchmarks.faults.traffic import Asked, Outcome

ROOT = Path(__file__).parents[2]
GATEWAY = "http://gateway"
pytestmark = pytest.mark.timeout(900)  # half a minute; starting ten processes takes its time where others work too
BY_NAME = {fault.name: fault for fault in faults()}


def run(*arguments: str) -> tuple[int, list[dict[str, object]], str]:
    command = [sys.executable, "-m", "benchmarks.faults", *arguments, "--no-stores", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=800)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def one(outcome: Outcome, sent_s: float = 0.0, end_s: float = 1.0, *, stream: bool = False) -> Asked:
    return Asked(GATEWAY, stream, sent_s, sent_s, end_s, outcome)


def test_the_loss_of_one_engine_fails_nothing_and_all_that_was_sent_is_counted() -> None:
    brief = ("--rate", "20", "--seconds", "1", "--around", "1.5")
    status, rows, said = run("engine-kill", "engine-partition", *brief)
    assert status == 0, said
    assert [one["fault"] for one in rows] == ["engine-kill", "engine-partition"]
    for told in rows:
        counts = {name: told[name] for name in ("answered", "refused", "ended", "cut", "failed")}
        assert sum(counts.values()) == told["sent"]  # type: ignore[arg-type]
        assert told["answered"] > 10  # type: ignore[operator]
        assert counts["cut"] == counts["failed"] == 0
    # Whatever was at the engine that was killed: begun streams end so, everything else moved.
    assert rows[0]["retried"] + rows[0]["ended"] > 0  # type: ignore[operator]


def test_a_promise_that_is_broken_is_said_and_is_the_exit_status() -> None:
    """There is no other engine."""
    status, rows, said = run(
        "engine-kill", "--engines", "1", "--rate", "20", "--seconds", "1", "--around", "1.5", "--tokens", "60"
    )
    assert status == 1
    assert rows[0]["is_kept"] is False
    assert rows[0]["failed"] > 0  # type: ignore[operator]
    assert "BROKEN: engine-kill:" in said


def test_a_fault_that_is_none_is_refused_by_name() -> None:
    status, rows, said = run("engine-kil")
    assert (status, rows) == (1, [])
    assert "engine-kil cannot be done here; there are engine-kill" in said


def test_a_connection_that_broke_with_its_killed_gateway_is_no_failure_and_any_other_is() -> None:
    asked = [one("answered"), one("broken"), one("broken", sent_s=0.6), one("broken", end_s=0.4)]
    found = row(BY_NAME["gateway-kill"], asked, 0, {GATEWAY: (0.5, 0.55)})
    assert (found.sent, found.answered, found.cut, found.failed) == (4, 1, 1, 2)
    assert not found.is_kept
    assert row(BY_NAME["gateway-kill"], asked[:2], 0, {GATEWAY: (0.5, 0.55)}).is_kept
    assert row(BY_NAME["gateway-kill"], asked[:3], 0, {GATEWAY: (0.5, 0.7)}).cut == 2  # sent to one that was dying
    assert row(BY_NAME["gateway-restart"], asked[:2], 0, {}).failed == 1


@pytest.mark.parametrize(
    ("fault", "outcome", "is_kept"),
    [
        ("engine-kill", "ended", True),
        ("engine-kill", "refused", True),
        ("engine-kill", "failed", False),
        ("engine-restart", "ended", False),
        ("gateway-restart", "ended", False),
        ("redis-kill", "ended", False),
        ("rolling-upgrade", "ended", False),
    ],
)
def test_a_stream_may_end_with_an_error_only_where_its_engine_was_lost(
    fault: str, outcome: Outcome, is_kept: bool
) -> None:
    assert row(BY_NAME[fault], [one("answered"), one(outcome, stream=True)], 0, {}).is_kept is is_kept


def test_a_run_in_which_nothing_was_answered_kept_no_promise() -> None:
    assert not row(BY_NAME["engine-kill"], [one("refused")], 0, {}).is_kept


def test_every_fault_is_in_the_documentation_and_its_columns_are_the_tables() -> None:
    text = (ROOT / "docs" / "faults.md").read_text("utf-8")
    assert [line for line in table([]) if line not in text.splitlines()] == []
    assert [name for name in BY_NAME if name not in text] == []
