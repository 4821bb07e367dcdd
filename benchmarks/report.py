"""From measurements to medians, a table, verdicts and a plot. Measures nothing."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

LATENCY, THROUGHPUT = "latency at a rate", "throughput"
ONE_BY_ONE = "frames, one of a stream on its way"
IN_BULK = "frames, as many as TCP takes"
Record = Mapping[str, object]
Medians = dict[str, dict[str, dict[str, float]]]  # target, what, figure


def medians(records: Sequence[Record]) -> Medians:
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for record in records:
        what = str(record["what"])
        figures = found.setdefault(str(record["target"]), {}).setdefault(what, {})
        for name, value in _figures(record, what).items():
            figures.setdefault(name, []).append(value)
    return {
        target: {
            what: {name: round(statistics.median(v), 3) for name, v in each.items()} for what, each in all_.items()
        }
        for target, all_ in found.items()
    }


def _figures(record: Record, what: str) -> dict[str, float]:
    def number(name: str) -> float:
        value = record[name]
        assert isinstance(value, int | float)
        return float(value)

    figures = {"errors": number("errors")}
    if what.endswith(LATENCY):
        return figures | {"p50_ms": number("p50_ms"), "p99_ms": number("p99_ms")}
    unit = "frames" if what in (ONE_BY_ONE, IN_BULK) else "requests"
    figures["per_s"] = number("frames" if unit == "frames" else "done") / max(1e-9, number("seconds"))
    return figures | {"cpu_us": 1e6 * number("cpu_s") / max(1.0, number(f"all_{unit}"))}


def section(header: Record, command: str, records: Sequence[Record], found: Medians) -> str:
    """A section of LOG.md."""
    day = datetime.now(UTC).date().isoformat()
    lines = [f"## {day}: what the gateway adds", "", f"Commit {header['commit']}; {hardware()}.", ""]
    lines += [f"    {command}", "", *_table(found), "", *_errors(records), *_verdicts(found)]
    return "\n".join(lines)


def hardware() -> str:
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    load = Path("/proc/loadavg").read_text().split()[0]
    model = named[0].partition(": ")[2] if named else platform.machine()
    return f"{len(named)} cores of {model}, load {load} at the end, Python {platform.python_version()}"


def _table(found: Medians) -> list[str]:
    """Latencies are what a target adds to direct access; direct's own row is the ceiling of engine and clients."""
    shown = [(what, column) for what in found["direct"] for column in _columns(what)]
    titles = [
        f"{what.removesuffix(f': {LATENCY}').removesuffix(f': {THROUGHPUT}')}: {column}" for what, column in shown
    ]
    lines = ["| | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    for title, (what, column) in zip(titles, shown, strict=True):
        cells = [_cell(found, target, what, column) if what in found[target] else "-" for target in found]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _columns(what: str) -> dict[str, str]:
    if what.endswith(LATENCY):
        return {"p50 ms": "p50_ms", "p99 ms": "p99_ms"}
    unit = "frames" if what in (ONE_BY_ONE, IN_BULK) else "requests"
    return {f"{unit}/s": "per_s", f"CPU µs/{unit[:-1]}": "cpu_us"}


def _cell(found: Medians, target: str, what: str, column: str) -> str:
    figure = _columns(what)[column]
    value = found[target][what][figure]
    if found[target][what]["errors"]:
        return "failed"
    if figure.endswith("_ms") and target != "direct":
        return f"+{value - found['direct'][what][figure]:.2f}"
    if figure == "cpu_us" and target == "direct":
        return "-"
    return f"{value:.2f}" if figure.endswith("_ms") else f"{value:,.0f}"


def _errors(records: Sequence[Record]) -> list[str]:
    told = {f"- {r['target']}, {r['what']}: {r['errors']} errors: {r['error']}": None for r in records if r["error"]}
    return [*told, ""] if told else []


def _verdicts(found: Medians) -> list[str]:
    """The goals, by name; where something was not measured, nothing is said."""
    lines = []

    def judge(name: str, value: float | None, goal: float, is_least: bool) -> None:
        if value is not None:
            holds = value >= goal if is_least else value <= goal
            lines.append(
                f"- {name}: {value:.2f} (goal: {'at least' if is_least else 'at most'} {goal:g}): "
                f"{'holds' if holds else 'DOES NOT HOLD'}"
            )

    for name, goal in (("text", 1.5), ("one image of 200 KB", 5.0)):
        what = f"{name}: {LATENCY}"
        ours, direct = (_value(found, target, what, "p50_ms") for target in ("ours", "direct"))
        judge(f"{name}: added p50 in ms", None if ours is None or direct is None else ours - direct, goal, False)
    for name in ("text", "one image of 200 KB", "64 images of 100 KB"):
        judge(f"{name}: requests/s, times LiteLLM's", _ratio(found, f"{name}: {THROUGHPUT}", "litellm"), 5, True)
    for name in (ONE_BY_ONE, IN_BULK):
        judge(f"{name}: times the Rust router's", _ratio(found, name, "vllm-router"), 0.5, True)
    return lines


def _value(found: Medians, target: str, what: str, figure: str) -> float | None:
    return found.get(target, {}).get(what, {}).get(figure)


def _ratio(found: Medians, what: str, peer: str) -> float | None:
    ours, theirs = _value(found, "ours", what, "per_s"), _value(found, peer, what, "per_s")
    return None if ours is None or not theirs else ours / theirs


def plot(found: Medians, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    whats = [what for what in found["direct"] if not what.endswith(LATENCY)]
    figure, axes = pyplot.subplots(1, len(whats), figsize=(3.2 * len(whats), 3.4))
    for axis, what in zip(axes, whats, strict=True):
        names = [name for name in found if what in found[name]]
        axis.bar(
            names, [found[name][what]["per_s"] for name in names], color=["#bbb", "#2a7", "#68a", "#a86"][: len(names)]
        )
        axis.set_yscale("log")
        axis.set_title(what.replace(f": {THROUGHPUT}", ", requests/s").replace("frames,", "frames/s,"), fontsize=8)
        axis.tick_params(axis="x", rotation=30, labelsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
