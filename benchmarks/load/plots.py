"""One picture a run: latencies as shares of requests, and what happened when. Knows matplotlib; judges nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.load.records import Record, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinguishable without colour too: the order of the legend is the order of the stack.
COLOURS: Final = {"answered": "#2a9d6f", "refused": "#e0a030", "failed": "#c0392b", "cancelled": "#8a8f98"}
_BINS: Final = 40
_HEADROOM: Final = 1.25  # above what is drawn, for the legend


def plot(run: Run, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    limits = run.told["limits"]
    drawn, axes = pyplot.subplots(2, 2, figsize=(11, 7))
    _shares(axes[0][0], run, lambda one: one.ttft_s, "time to the first token, s", limits["ttft_s"])
    _shares(axes[0][1], run, lambda one: one.tpot_s, "time per output token, s", limits["tpot_s"])
    _outcomes(axes[1][0], run)
    _over_time(axes[1][1], run)
    drawn.suptitle(f"{run.label}: {run.number('rate'):.2f} requests/s for {run.number('seconds'):g} s", fontsize=11)
    drawn.tight_layout()
    drawn.savefig(file, dpi=110)
    pyplot.close(drawn)


def _shares(axis: Axes, run: Run, figure: Callable[[Record], float | None], name: str, limit: float) -> None:
    """For each part the share of its answers that were at least as fast."""
    for part in dict.fromkeys(one.part for one in run.records):
        mine = [one for one in run.records if one.part == part and one.outcome == "answered"]
        values = np.sort([value for one in mine if (value := figure(one)) is not None])
        if values.size:
            axis.step(values, np.arange(1, values.size + 1) / values.size, where="post", label=part)
    axis.axvline(limit, color="#444", linestyle=":", label="limit")
    axis.set(xlabel=name, ylabel="share of answers", ylim=(0, 1.02))
    axis.legend(fontsize=8, loc="lower right")


def _outcomes(axis: Axes, run: Run) -> None:
    """By when requests were due."""
    bins = np.linspace(0, run.number("seconds"), _BINS + 1)
    due = [[one.due_s for one in run.records if one.outcome == outcome] for outcome in COLOURS]
    axis.hist(due, bins=bins, stacked=True, color=list(COLOURS.values()), label=list(COLOURS))
    axis.set(xlabel="due at, s", ylabel="requests")
    axis.legend(fontsize=8, loc="lower left")


def _over_time(axis: Axes, run: Run) -> None:
    answered = [one for one in run.records if one.outcome == "answered" and one.ttft_s is not None]
    axis.plot([one.due_s for one in answered], [one.ttft_s for one in answered], ".", markersize=3, label="TTFT, s")
    axis.set(xlabel="due at, s", ylabel="time to the first token, s", ylim=(0, _HEADROOM * axis.get_ylim()[1]))
    if run.samples:
        beside = axis.twinx()
        _sampled(beside, run, "process_resident_memory_bytes", 2**20, "gateway's memory, MiB", "#555")
        beside.set(ylabel="MiB", ylim=(0, _HEADROOM * beside.get_ylim()[1]))
        beside.legend(fontsize=8, loc="lower right")
    axis.legend(fontsize=8, loc="upper left")


def _sampled(axis: Axes, run: Run, name: str, unit: float, label: str, colour: str) -> None:
    seen: Sequence[tuple[float, float]] = [(s.at_s, s.values[name] / unit) for s in run.samples if name in s.values]
    if seen:
        axis.plot(*zip(*seen, strict=True), color=colour, linewidth=1, label=label)
