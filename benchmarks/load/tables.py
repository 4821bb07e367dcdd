"""From summaries to Markdown for a log and rows for a page. Knows which figure stands where; computes none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.load.summary import Distribution, Figures, Summary

Row = tuple[str, ...]
_LATENCIES = {
    "TTFT": "ttft_ms",
    "time per output token": "tpot_ms",
    "between two frames": "gap_ms",
    "whole answer": "whole_ms",
}


def figures(summaries: Sequence[Summary]) -> list[Row]:
    """A column a run, a row a figure; the first row is the head."""
    rows: list[Row] = [("", *(one.label for one in summaries))]

    def row(name: str, cells: Iterator[str]) -> None:
        rows.append((name, *cells))

    row("offered, requests/s", (f"{one.rate:.2f} for {one.seconds:g} s" for one in summaries))
    row("goodput, requests/s", (f"{one.goodput:.2f} ({one.share_good:.0%})" for one in summaries))
    row("answered, requests/s", (f"{one.answered_per_s:.2f}" for one in summaries))
    row("answers, tokens/s", (f"{one.tokens_per_s:.1f}" for one in summaries))
    for name in ("answered", "refused", "failed", "cancelled"):
        row(name, (str(getattr(one.all, name)) for one in summaries))
    row("not started", (str(one.unstarted) for one in summaries))
    for name, field in _LATENCIES.items():
        row(f"{name}, ms: p50 / p90 / p99", (_cell(getattr(one.all, field)) for one in summaries))
    row("sent late, ms: p50 / p90 / p99", (_cell(one.late_ms) for one in summaries))
    row("server's memory, MiB: first / last / most", (_memory(one) for one in summaries))
    return rows


def parts(summary: Summary) -> list[Row]:
    rows: list[Row] = [("", "answered", "good", "TTFT, ms: p50 / p90 / p99", "time per output token, ms")]
    rows += [(name, *_part(found)) for name, found in summary.parts.items()]
    return rows


def troubles(summary: Summary) -> list[str]:
    """Sentences about what was not answered, and about the client itself."""
    told = [f"failed {count} times: {why}" for why, count in summary.errors.items()]
    for why, found in summary.refusals.items():
        least, most = found.retry_after_s
        told.append(f"refused {found.count} times: {why}, Retry-After from {least:g} to {most:g} s")
    if summary.unstarted:
        told.append(f"{summary.unstarted} requests could not be started: as many as --most-open allows were under way")
    if summary.is_client_late:
        told.append("one request of a hundred or more was sent 50 ms late or more: the client, too, was short of time")
    return told


def markdown(rows: Sequence[Row]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "| --- |" + " ---: |" * (len(rows[0]) - 1), *lines[1:]]


def _part(found: Figures) -> Row:
    return str(found.answered), str(found.good), _cell(found.ttft_ms), _cell(found.tpot_ms)


def _cell(found: Distribution | None) -> str:
    return "-" if found is None else f"{found.p50:.1f} / {found.p90:.1f} / {found.p99:.1f}"


def _memory(summary: Summary) -> str:
    return "-" if summary.server_mib is None else " / ".join(f"{one:.1f}" for one in summary.server_mib)
