"""The issue's goals for the full-size model, and whether they hold. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

OURS, PEER = "kimi-serve", "llama.cpp"  # how rows' targets begin
OF_CEILING = {"int4": 0.75, "int8": 0.70}
PEER_DECODE = 1.4  # times llama.cpp's one sequence
TOGETHER = {8: 30.0, 16: 40.0}  # tokens a second in all, int4
PREFILL = 400.0  # tokens a second
PEER_PREFILL = 5.0
LOADING_S = 60.0
MEMORY = 1.15  # of the checkpoint's bytes


class Figure(Protocol):
    target: str
    what: str

    @property
    def rate(self) -> float: ...

    @property
    def of_ceiling(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Start:
    """What one start of the engine took."""

    ready_s: float
    loading_s: float | None
    memory: int  # bytes of all processes, after measuring
    largest: int  # of the process that computes
    cache: int  # of that, keys and values: as many as the launcher or a person gave
    stored: int  # of the checkpoint's weights

    def __str__(self) -> str:
        loading = "not logged" if self.loading_s is None else f"{self.loading_s:.1f} s"
        return (
            f"from the command to an answer of /health: {self.ready_s:.0f} s; reading the weights of it: {loading}; "
            f"resident: {self.memory / 1e9:.2f} GB in all, {self.largest / 1e9:.2f} GB where the model computes, "
            f"{self.cache / 1e9:.2f} GB of them for keys and values; weights stored: {self.stored / 1e9:.2f} GB"
        )


def judged(scheme: str, rows: Sequence[Figure], start: Start | None) -> list[str]:
    """One line a goal; where something was not measured, nothing is said."""
    return [*_decode(scheme, rows), *_prefill(rows), *(_start(start) if start else ())]


def _decode(scheme: str, rows: Sequence[Figure]) -> Iterator[str]:
    one, peer = _find(rows, OURS, "decode, 1 "), _find(rows, PEER, "decode, 1 ")
    if one:
        yield _judge(f"one sequence, of the ceiling of its rounds ({scheme})", one.of_ceiling, OF_CEILING[scheme], True)
    if one and peer:
        yield _judge(f"one sequence, times {peer.target}", one.rate / peer.rate, PEER_DECODE, True)
    for batch, goal in TOGETHER.items():
        row = _find(rows, OURS, f"decode, {batch} ")
        if row and scheme == "int4":
            yield _judge(f"{batch} sequences, tokens/s in all", row.rate, goal, True)


def _prefill(rows: Sequence[Figure]) -> Iterator[str]:
    ours, peer = _find(rows, OURS, "prefill"), _find(rows, PEER, "prefill")
    if ours:
        yield _judge("prefill, tokens/s", ours.rate, PREFILL, True)
    if ours and peer:
        yield _judge(f"prefill, times {peer.target}", ours.rate / peer.rate, PEER_PREFILL, True)


def _start(start: Start) -> Iterator[str]:
    yield _judge("from the command to ready, s", start.ready_s, LOADING_S, False)
    without = (start.memory - start.cache) / start.stored
    yield _judge("resident in all but for keys and values, times the checkpoint", without, MEMORY, False)


def _find(rows: Sequence[Figure], target: str, what: str) -> Figure | None:
    return next((row for row in rows if row.target.startswith(target) and row.what.startswith(what)), None)


def _judge(name: str, value: float, goal: float, is_least: bool) -> str:
    holds = value >= goal if is_least else value <= goal
    least = "at least" if is_least else "at most"
    return f"- {name}: {value:.2f} (goal: {least} {goal:g}): {'holds' if holds else 'DOES NOT HOLD'}"
