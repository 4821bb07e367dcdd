"""One HTML page of all runs, with its pictures inside: it can be mailed. Knows HTML; computes nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape

from benchmarks.load import tables
from benchmarks.load.records import Run
from benchmarks.load.summary import Summary
from benchmarks.load.tables import Row

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}"
    "body{color:#222;background:#fff}table{border-collapse:collapse;margin:1rem 0}"
    "th,td{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}"
    "th:first-child,td:first-child{text-align:left}img{max-width:100%}pre{background:#f4f4f4;padding:.6rem;overflow:auto}"
    ".trouble{color:#a33}"
)
_LEGEND = (
    "Latencies are those of answered requests, from the moment of sending. Goodput counts answers within both of the "
    "scenario's limits, for each second in which requests were offered; beside it is their share of the requests whose "
    "clients stayed."
)


def page(runs: Sequence[Run], summaries: Sequence[Summary], pictures: Sequence[bytes]) -> str:
    """pictures: one PNG a run."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Load</title>',
        f"<style>{_STYLE}</style></head><body><h1>Load</h1>",
        _table(tables.figures(summaries)),
        f"<p>{_LEGEND}</p>",
    ]
    for run, summary, picture in zip(runs, summaries, pictures, strict=True):
        parts.append(_section(run, summary, picture))
    return "\n".join([*parts, "</body></html>", ""])


def _section(run: Run, summary: Summary, picture: bytes) -> str:
    header, told, limits = run.header, run.told, run.told["limits"]
    place = f"{header['began']}, {header['host']}, {header['model']}, commit {header['commit']}"
    shown = base64.b64encode(picture).decode()
    lines = [
        f"<h2>{escape(run.label)}</h2>",
        f"<p>{escape(str(told['about']))}. Limits: TTFT {limits['ttft_s']:g} s, {limits['tpot_s']:g} s per token.</p>",
        f"<p><small>{escape(place)}; client: {escape(str(header['client']))}</small></p>",
        *(f'<p class="trouble">{escape(trouble)}</p>' for trouble in tables.troubles(summary)),
        f'<img alt="{escape(_described(summary))}" src="data:image/png;base64,{shown}">',
        _table(tables.parts(summary)),
        f"<details><summary>Scenario</summary><pre>{escape(json.dumps(told, indent=1))}</pre></details>",
    ]
    return "\n".join(lines)


def _described(summary: Summary) -> str:
    """For who does not see the picture: the tables hold its figures."""
    return f"Latencies of {summary.label} as shares of its answers, and its requests over time"


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
