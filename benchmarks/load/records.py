"""What became of each request, and the files of a run. Knows moments and counts; judges nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

Outcome = Literal["answered", "refused", "failed", "cancelled"]
RUN: Final = "run.json"
REQUESTS: Final = "requests.jsonl"
SERVER: Final = "server.jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Moments are seconds from the run's beginning, those of tokens from the moment of sending."""

    number: int
    part: str
    due_s: float
    sent_s: float
    end_s: float
    outcome: Outcome
    why: str | None = None  # of what was not answered: status and code, or what broke
    token_s: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    retry_after_s: float | None = None

    @property
    def late_s(self) -> float:
        """How long after it was due the client sent it: a slow client measures itself."""
        return self.sent_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        return self.token_s[0] if self.token_s else None

    @property
    def tpot_s(self) -> float | None:
        """From the first token to the last, over all tokens but the first; the server says how many there were."""
        if not self.token_s or self.answer_tokens is None or self.answer_tokens < 2:
            return None
        return (self.token_s[-1] - self.token_s[0]) / (self.answer_tokens - 1)

    @property
    def gaps_s(self) -> list[float]:
        """Between two frames of the stream."""
        return [after - before for before, after in zip(self.token_s, self.token_s[1:], strict=False)]

    @property
    def whole_s(self) -> float:
        return self.end_s - self.sent_s

    def as_line(self) -> str:
        told = asdict(self)
        for name in ("due_s", "sent_s", "end_s"):
            told[name] = round(told[name], 6)
        told["token_s"] = [round(at, 6) for at in self.token_s]
        return json.dumps({name: value for name, value in told.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server said about itself, at a moment of the run."""

    at_s: float
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """header: what was asked for, when, of whom; `complete` once its last request ended."""

    folder: Path
    header: dict[str, object]
    records: list[Record]
    samples: list[Sample]

    @property
    def label(self) -> str:
        return str(self.header["label"])

    @property
    def told(self) -> dict[str, Any]:
        """The scenario, as it was offered."""
        told = self.header["told"]
        assert isinstance(told, dict)
        return told

    def number(self, name: str) -> float:
        value = self.header[name]
        assert isinstance(value, int | float), f"{name} of {self.folder}"
        return float(value)


class RunError(ValueError):
    """A folder holds no run, or one that was cut off."""


def load(folder: Path) -> Run:
    file = folder / RUN
    if not file.exists():
        raise RunError(f"{folder}: holds no {RUN}, so no run")
    header = json.loads(file.read_text())
    if not header["complete"]:
        raise RunError(f"{folder}: the run did not get to its end; run it again")
    records = [_record(line) for line in _lines(folder / REQUESTS)]
    if len(records) != header["started"]:
        raise RunError(f"{folder}: {header['started']} requests were started, and {len(records)} have a record")
    samples = [Sample(line["at_s"], line["values"]) for line in _lines(folder / SERVER)]
    return Run(folder, header, sorted(records, key=lambda one: one.number), samples)


def _lines(file: Path) -> Iterable[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _record(line: dict[str, object]) -> Record:
    return Record(**{**line, "token_s": tuple(line["token_s"])})  # type: ignore[arg-type]  # as_line wrote it
