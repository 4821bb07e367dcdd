"""From what clients saw to a row, and whether the promise was kept. Knows outcomes; starts nothing.

The promise: no request fails because one part is lost. A request that does not stream is answered, or told when to come
back; a stream that had begun at an engine that is gone ends with an error event; what was at a gateway that was killed
is cut off with it, and nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.faults.inject import Fault
from benchmarks.faults.traffic import Asked


@dataclass(frozen=True, slots=True)
class Row:
    fault: str
    what: str
    sent: int
    answered: int
    retried: int  # by the gateways, unseen by clients
    refused: int  # with Retry-After
    ended: int  # streams, by an error event
    cut: int  # with the gateway that was killed
    failed: int
    slowest_s: float
    late_s: float  # behind its moment, the worst request: this client's own fault
    broken: tuple[str, ...]  # what was promised and not kept
    why: Mapping[str, int]  # of what was not answered

    @property
    def is_kept(self) -> bool:
        return not self.broken


def row(fault: Fault, asked: Sequence[Asked], retried: int, killed: Mapping[str, tuple[float, float]]) -> Row:
    """killed: the gateways that were, from when until when they died."""
    seen = Counter("cut" if _was_cut(one, killed) else one.outcome for one in asked)
    failed = seen["failed"] + seen["broken"]
    answers = [one.end_s - one.sent_s for one in asked if one.outcome == "answered"]
    return Row(
        fault.name,
        fault.what,
        len(asked),
        seen["answered"],
        retried,
        seen["refused"],
        seen["ended"],
        seen["cut"],
        failed,
        round(max(answers, default=0.0), 2),
        round(max((one.sent_s - one.due_s for one in asked), default=0.0), 2),
        tuple(_broken(fault, asked, seen, failed)),
        dict(Counter(f"{_form(one)}: {one.why}" for one in asked if one.outcome != "answered")),
    )


def _was_cut(one: Asked, killed: Mapping[str, tuple[float, float]]) -> bool:
    began, ended = killed.get(one.gateway, (math.inf, -math.inf))
    return one.outcome == "broken" and one.sent_s <= ended and began <= one.end_s


def _form(one: Asked) -> str:
    return "stream" if one.stream else "whole"


def _broken(fault: Fault, asked: Sequence[Asked], seen: Mapping[str, int], failed: int) -> list[str]:
    said = []
    if not seen["answered"]:
        said.append("no request was answered")
    if failed:
        whole = sum(one.outcome in ("failed", "broken") and not one.stream for one in asked)
        said.append(f"{failed} requests failed or broke off without a word, {whole} of them not streams")
    if seen["ended"] and not fault.may_end_streams:
        said.append(f"{seen['ended']} streams ended with an error event, and their engine was not lost")
    if seen["cut"] and not fault.may_cut:
        said.append(f"{seen['cut']} requests were cut off")
    return said


COLUMNS = ("sent", "answered", "retried", "refused", "ended", "cut", "failed", "slowest_s", "late_s")
TITLES = (
    "sent",
    "answered",
    "retried inside",
    "refused with Retry-After",
    "streams ended by an error event",
    "cut off with their gateway",
    "failed",
    "slowest answer, s",
    "sent late by, s",
)


def table(rows: Sequence[Row]) -> list[str]:
    lines = ["| fault | what happened | " + " | ".join(TITLES) + " |", "| --- | --- |" + " ---: |" * len(TITLES)]
    for one in rows:
        cells = " | ".join(str(getattr(one, name)) for name in COLUMNS)
        lines.append(f"| {one.fault} | {one.what} | {cells} |")
    return lines


def verdicts(rows: Sequence[Row]) -> list[str]:
    return [f"BROKEN: {one.fault}: {said}; {dict(one.why)}" for one in rows for said in one.broken]
