"""Runs as files, without a load. Knows the fields of a run; measures nothing."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load import scenarios
from benchmarks.load.records import REQUESTS, RUN, SERVER, Record, Run, load


def record(number: int, outcome: str = "answered", *, ttft: float = 0.1, tpot: float = 0.01, **more: object) -> Record:
    """An answer of five tokens."""
    token_s = tuple(ttft + n * tpot for n in range(5)) if outcome == "answered" else ()
    told = {"part": "chat", "due_s": number / 10, "sent_s": number / 10 + 0.001, "answer_tokens": 5, **more}
    return Record(number=number, end_s=number / 10 + ttft + 4 * tpot, outcome=outcome, token_s=token_s, **told)  # type: ignore[arg-type]


def run(folder: Path, records: Sequence[Record], scenario: str = "chat", **more: object) -> Run:
    folder.mkdir(parents=True)
    told = scenarios.read(scenario).model_dump(mode="json")
    header = {"label": scenario, "scenario": scenario, "told": told, "host": "http://h", "model": "m", "rate": 10.0}
    header |= {
        "seconds": 10.0,
        "due": len(records),
        "started": len(records),
        "unstarted": 0,
        "began": "2026-01-01",
        "commit": "c",
    }
    (folder / RUN).write_text(json.dumps(header | {"client": "a machine", "complete": True, **more}))
    (folder / REQUESTS).write_text("".join(one.as_line() + "\n" for one in reversed(records)))
    samples = [{"at_s": n, "values": {"process_resident_memory_bytes": (100 + n) * 2**20}} for n in range(3)]
    (folder / SERVER).write_text("".join(json.dumps(one) + "\n" for one in samples))
    return load(folder)
