"""From a run's records to its figures: percentiles, goodput, errors by kind. Reads no file and draws nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from benchmarks.load.records import Record, Run
from benchmarks.load.scenarios import Limits

TENTHS: Final = 10
LATE_S: Final = 0.05  # a client that is later than this for one request of a hundred measures itself
_MEMORY: Final = "process_resident_memory_bytes"


@dataclass(frozen=True, slots=True)
class Distribution:
    """In milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Refusals:
    count: int
    retry_after_s: tuple[float, float]  # least and most


@dataclass(frozen=True, slots=True)
class Figures:
    """Of a run, or of one part of it. Latencies are those of answered requests."""

    answered: int
    good: int  # answered within the limits
    refused: int
    failed: int
    cancelled: int
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    gap_ms: Distribution | None
    whole_ms: Distribution | None


@dataclass(frozen=True, slots=True)
class Summary:
    label: str
    scenario: str
    rate: float
    seconds: float
    due: int
    unstarted: int
    all: Figures
    parts: dict[str, Figures]
    goodput: float  # good requests for each second in which requests were offered
    answered_per_s: float  # from the first request's start to the last answer's end
    tokens_per_s: float
    errors: dict[str, int]
    refusals: dict[str, Refusals]
    late_ms: Distribution | None
    ttft_p99_ms_by_tenth: list[float | None]
    server_mib: tuple[float, float, float] | None  # first, last, most

    @property
    def share_good(self) -> float:
        """Of the requests whose clients stayed; what was not started is not good either."""
        return self.all.good / max(1, self.due - self.all.cancelled)

    @property
    def is_client_late(self) -> bool:
        return self.late_ms is not None and self.late_ms.p99 > 1000 * LATE_S

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"share_good": self.share_good, "is_client_late": self.is_client_late}


def summarize(run: Run) -> Summary:
    limits, records = Limits.model_validate(run.told["limits"]), run.records
    answered = [one for one in records if one.outcome == "answered"]
    span = max((one.end_s for one in answered), default=0.0) - min((one.sent_s for one in answered), default=0.0)
    parts = list(dict.fromkeys(part["name"] for part in run.told["parts"]))
    figures = figures_of(records, limits)
    return Summary(
        label=run.label,
        scenario=str(run.header["scenario"]),
        rate=run.number("rate"),
        seconds=run.number("seconds"),
        due=int(run.number("due")),
        unstarted=int(run.number("unstarted")),
        all=figures,
        parts={name: figures_of([one for one in records if one.part == name], limits) for name in parts},
        goodput=figures.good / run.number("seconds"),
        answered_per_s=len(answered) / span if span else 0.0,
        tokens_per_s=sum(one.answer_tokens or 0 for one in answered) / span if span else 0.0,
        errors=dict(Counter(one.why or "unknown" for one in records if one.outcome == "failed").most_common()),
        refusals=_refusals(records),
        late_ms=distribution(one.late_s for one in records),
        ttft_p99_ms_by_tenth=_by_tenth(answered, run.number("seconds")),
        server_mib=_memory(run),
    )


def figures_of(records: Sequence[Record], limits: Limits) -> Figures:
    outcomes = Counter(one.outcome for one in records)
    answered = [one for one in records if one.outcome == "answered"]
    return Figures(
        answered=outcomes["answered"],
        good=sum(is_good(one, limits) for one in answered),
        refused=outcomes["refused"],
        failed=outcomes["failed"],
        cancelled=outcomes["cancelled"],
        ttft_ms=distribution(one.ttft_s for one in answered),
        tpot_ms=distribution(one.tpot_s for one in answered),
        gap_ms=distribution(gap for one in answered for gap in one.gaps_s),
        whole_ms=distribution(one.whole_s for one in answered),
    )


def is_good(record: Record, limits: Limits) -> bool:
    """An answer of one token has no time per token to be judged by."""
    if record.outcome != "answered" or record.ttft_s is None or record.ttft_s > limits.ttft_s:
        return False
    return record.tpot_s is None or record.tpot_s <= limits.tpot_s


def distribution(seconds: Iterable[float | None]) -> Distribution | None:
    """Percentiles between two samples are interpolated. None of nothing."""
    values = np.array([one for one in seconds if one is not None])
    if not values.size:
        return None
    marks = np.percentile(values, (50, 90, 95, 99))
    return Distribution(values.size, *(round(1000 * float(one), 3) for one in (values.mean(), *marks)))


def _refusals(records: Sequence[Record]) -> dict[str, Refusals]:
    found: dict[str, list[float]] = {}
    for one in records:
        if one.outcome == "refused":
            assert one.retry_after_s is not None
            found.setdefault(one.why or "unknown", []).append(one.retry_after_s)
    return {why: Refusals(len(after), (min(after), max(after))) for why, after in found.items()}


def _by_tenth(answered: Sequence[Record], seconds: float) -> list[float | None]:
    """A server that gets slower shows it here: p99 of those sent in each tenth of the run."""
    tenths: list[list[float]] = [[] for _ in range(TENTHS)]
    for one in answered:
        if one.ttft_s is not None:
            tenths[min(TENTHS - 1, int(TENTHS * one.due_s / seconds))].append(one.ttft_s)
    return [found.p99 if (found := distribution(each)) else None for each in tenths]


def _memory(run: Run) -> tuple[float, float, float] | None:
    seen = [sample.values[_MEMORY] / 2**20 for sample in run.samples if _MEMORY in sample.values]
    return (round(seen[0], 1), round(seen[-1], 1), round(max(seen), 1)) if seen else None
