"""What is shown of runs: a table, a page, a line."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.load import report
from benchmarks.load.records import RUN, RunError
from tests.benchmarks.load.made import record, run

REFUSED = {"why": "503 queue_full", "retry_after_s": 2.0}


Shown = tuple[str, str, Path]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """What is printed, the page, and the folder of the runs."""
    tmp_path = tmp_path_factory.mktemp("runs")
    run(tmp_path / "a", [record(n) for n in range(20)], label="with <admission>", began="2026-01-01")
    refused = [record(20, "refused", **REFUSED), record(21, "failed", why="500 upstream_error")]
    run(tmp_path / "b", [record(n, ttft=2.0) for n in range(20)] + refused, label="without", began="2026-01-02")
    page = tmp_path / "pages" / "report.html"
    printed = report.report(report.runs_in([tmp_path]), page)
    return printed, page.read_text(), tmp_path


def test_runs_stand_side_by_side(shown: Shown) -> None:
    printed, _, _ = shown
    rows = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines() if line.startswith("|")}
    assert rows["goodput, requests/s"].endswith("| 2.00 (100%) | 0.00 (0%) |")
    assert rows["TTFT, ms: p50 / p90 / p99"].endswith("| 100.0 / 100.0 / 100.0 | 2000.0 / 2000.0 / 2000.0 |")
    assert rows["refused"].endswith("| 0 | 1 |")
    assert "- without: failed 1 times: 500 upstream_error" in printed
    assert "- without: refused 1 times: 503 queue_full, Retry-After from 2 to 2 s" in printed


def test_the_last_line_is_json_with_every_figure(shown: Shown) -> None:
    printed, _, _ = shown
    told = json.loads(printed.splitlines()[-1])
    assert told["with <admission>"]["all"]["ttft_ms"] == {
        "count": 20,
        "mean": 100.0,
        "p50": 100.0,
        "p90": 100.0,
        "p95": 100.0,
        "p99": 100.0,
    }
    assert told["without"]["refusals"] == {"503 queue_full": {"count": 1, "retry_after_s": [2.0, 2.0]}}


def test_the_page_needs_nothing_but_itself(shown: Shown) -> None:
    _, page, folder = shown
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page
    assert "with &lt;admission&gt;" in page
    assert "with <admission>" not in page
    for name in ("a", "b"):
        assert (folder / name / report.PLOT).read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_cut_off_is_no_result(tmp_path: Path) -> None:
    run(tmp_path / "a", [record(0)])
    header = json.loads((tmp_path / "a" / RUN).read_text())
    (tmp_path / "a" / RUN).write_text(json.dumps(header | {"complete": False}))
    with pytest.raises(RunError, match="did not get to its end"):
        report.runs_in([tmp_path])


def test_a_request_without_a_record_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="3 requests were started, and 2 have a record"):
        run(tmp_path / "a", [record(0), record(1)], started=3)


def test_a_folder_without_runs_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run is in there"):
        report.runs_in([tmp_path])
