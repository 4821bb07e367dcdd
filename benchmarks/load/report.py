"""Runs in folders become tables, pictures, one page and one line of JSON. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.load import tables
from benchmarks.load.page import page
from benchmarks.load.plots import plot
from benchmarks.load.records import RUN, Run, RunError, load
from benchmarks.load.summary import Summary, summarize

PAGE: Final = "report.html"
PLOT: Final = "plot.png"


def runs_in(folders: Sequence[Path]) -> list[Run]:
    """A folder is a run, or holds runs. Raises RunError where there is none at all, or one that was cut off."""
    found = [each for folder in folders for each in ([folder] if (folder / RUN).exists() else _inside(folder))]
    if not found:
        raise RunError(f"{', '.join(map(str, folders))}: no run is in there; `make load` makes one")
    return sorted((load(folder) for folder in found), key=lambda run: str(run.header["began"]))


def _inside(folder: Path) -> list[Path]:
    return [file.parent for file in folder.glob(f"*/{RUN}")]


def report(runs: Sequence[Run], to: Path) -> str:
    """Writes the page and each run's picture; returns Markdown that ends with the line of JSON."""
    summaries = [summarize(run) for run in runs]
    for run in runs:
        plot(run, run.folder / PLOT)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(page(runs, summaries, [(run.folder / PLOT).read_bytes() for run in runs]))
    lines = [*tables.markdown(tables.figures(summaries)), ""]
    for summary in summaries:
        lines += [f"- {summary.label}: {trouble}" for trouble in tables.troubles(summary)]
    return "\n".join([*lines, line(summaries)])


def line(summaries: Sequence[Summary]) -> str:
    return json.dumps({summary.label: summary.as_dict() for summary in summaries})
