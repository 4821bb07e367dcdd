"""Where the milliseconds of one decoded token are, by torch's profiler in the served engine. Knows traces.

    python -m benchmarks.decode_profile FOLDER/int4                  # a checkpoint that full_size.py made
    python -m benchmarks.decode_profile --trace FILE.pt.trace.json.gz CHECKPOINT

A part's milliseconds are its operators' own time, without what they call; "between operators" is the step's time less
all of them: Python, fused code of torch.compile, and waiting for the other processes. Profiling itself costs some
microseconds an operator, which the total has too: compare shares, and take rates from full_size.py.
"""

from __future__ import annotations

import argparse
import gzip
import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.served_engine import Engine
from kimi_serve.inputs.config import TextConfig, load_checkpoint

TOKENS = 24
LINEAR, SPARSE = "kimi_serve::linear", "kimi_serve::sparse"
PARTS = {
    SPARSE: "router and experts",
    "kimi_serve::mlp": "dense layer",
    "kimi_serve::latent": "queries, keys and values",
    "kimi_serve::norm": "norms",
    "kimi_serve::add_norm": "norms",
}
OTHERS = 12  # operators named one by one


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    begin: float  # microseconds
    end: float
    shapes: Sequence[Sequence[int]]


def profile(checkpoint: Path, folder: Path, batch: int, flags: Sequence[str]) -> Path:
    """Serve, warm, decode under the profiler; the trace of the process that computes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "profiler": "torch",
        "torch_profiler_dir": str(folder.resolve()),
        "torch_profiler_with_stack": False,
        "torch_profiler_record_shapes": True,
    }
    before = set(folder.glob("*.trace.json.gz"))
    with Engine(checkpoint, ["--profiler-config", json.dumps(config), *flags], folder / "engine.log") as engine:
        print(f"ready in {engine.ready_s:.0f} s, {engine.loading_s} s of them reading weights")
        engine.decode(-1, batch, 4)
        engine.post("/start_profile")
        engine.decode(0, batch, TOKENS)
        engine.post("/stop_profile")
    for path in sorted(set(folder.glob("*.trace.json.gz")) - before):
        if any(event.name == SPARSE for event in events(path)):
            return path
    raise SystemExit(f"{folder}: no trace holds {SPARSE}")


def events(path: Path) -> list[Event]:
    """Operators of the thread that computes, by their beginning."""
    with gzip.open(path) as file:
        found = json.load(file)["traceEvents"]
    operators = [each for each in found if each.get("ph") == "X" and each.get("cat") == "cpu_op"]
    threads = Counter(each["tid"] for each in operators if each["name"] == SPARSE)
    if not threads:
        return []
    [(thread, _)] = threads.most_common(1)
    told = [
        Event(each["name"], each["ts"], each["ts"] + each["dur"], each["args"].get("Input Dims", ()))
        for each in operators
        if each["tid"] == thread
    ]
    return sorted(told, key=lambda event: (event.begin, -event.end))


def own_times(found: Sequence[Event]) -> Iterator[tuple[Event, float]]:
    """Each operator with its time less that of the operators that it calls."""
    open_: list[tuple[Event, list[float]]] = []
    for event in found:
        while open_ and open_[-1][0].end <= event.begin:
            yield _closed(open_.pop())
        if open_:
            open_[-1][1].append(event.end - event.begin)
        open_.append((event, []))
    while open_:
        yield _closed(open_.pop())


def _closed(entry: tuple[Event, list[float]]) -> tuple[Event, float]:
    event, inner = entry
    return event, event.end - event.begin - sum(inner)


def steps(found: Sequence[Event], text: TextConfig) -> list[Event]:
    """Decoding steps only: from one lm_head to the next, both of the same number of rows as the last one."""
    heads = [event for event in found if event.name == LINEAR and event.shapes[1][0] == text.vocab_size]
    batch = heads[-1].shapes[0][0]
    bounds = [event.end for event in heads if event.shapes[0][0] == batch]
    return [event for event in found if bounds[0] <= event.begin and event.end <= bounds[-1]]


def part(event: Event, text: TextConfig) -> str:
    if event.name == LINEAR:
        return "lm_head" if event.shapes[1][0] == text.vocab_size else "o_proj"
    if "attention" in event.name or "attn" in event.name:
        return "attention over the cache"
    return PARTS.get(event.name, event.name)


def table(found: Sequence[Event], text: TextConfig) -> str:
    kept = steps(found, text)
    count = sum(event.name == LINEAR and event.shapes[1][0] == text.vocab_size for event in kept)
    wall = (kept[-1].end - kept[0].begin) / count
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event, own in own_times(kept):
        times[part(event, text)] += own / count
        calls[part(event, text)] += 1
    named = set(dict(times.most_common(OTHERS + 8)))
    rest = sum(time for name, time in times.items() if name not in named)
    lines = ["| part | ms a step | share | calls a step |", "| --- | ---: | ---: | ---: |"]
    for name, time in times.most_common():
        if name in named:
            lines.append(_line(name, time, wall, calls[name] / count))
    others = sum(calls[name] for name in times if name not in named) / count
    lines.append(_line("other operators", rest, wall, others))
    lines.append(_line("between operators", wall - times.total(), wall, None))
    lines.append(_line(f"a step (mean of {count})", wall, wall, sum(calls.values()) / count))
    return "\n".join(lines)


def _line(name: str, time: float, wall: float, calls: float | None) -> str:
    return f"| {name} | {time / 1e3:.2f} | {time / wall:.1%} | {'-' if calls is None else f'{calls:.0f}'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--trace", type=Path, help="read this one and start nothing")
    parser.add_argument("--engine-flag", action="append", default=[], help="passed to kimi-serve engine; repeatable")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the engine ends with us
    folder = arguments.checkpoint.with_name(f"{arguments.checkpoint.name}.profile")
    trace = arguments.trace or profile(arguments.checkpoint, folder, arguments.batch, arguments.engine_flag)
    print(trace)
    print(table(events(trace), load_checkpoint(arguments.checkpoint).model.text))


if __name__ == "__main__":
    main()
