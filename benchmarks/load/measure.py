"""One run, from its options to its files. Knows the server's address and the order of steps; judges nothing."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO

import gevent

from benchmarks.load import feed, scenarios
from benchmarks.load.arrivals import moments
from benchmarks.load.exchange import Client, Server
from benchmarks.load.offer import offer
from benchmarks.load.records import REQUESTS, RUN, SERVER, Record, Sample
from benchmarks.load.scenarios import Scenario, ScenarioError
from benchmarks.report import hardware

SAMPLES_EVERY_S: Final = 2.0
# Of our gateway's metrics; from a server that has none of them, nothing is noted.
WATCHED: Final = (
    "process_resident_memory_bytes",
    "kimi_serve_outstanding_requests",
    "kimi_serve_waiting_requests",
    "kimi_serve_in_flight_bytes",
)


@dataclass(frozen=True, slots=True)
class Options:
    host: str
    scenario: str
    out: Path
    scenarios: Path = scenarios.BUNDLED
    key: str | None = None
    model: str | None = None  # None: the first that the server names
    label: str | None = None  # None: the scenario's name
    rate: float | None = None  # instead of the scenario's; so are the three below
    seconds: float | None = None
    process: str | None = None
    capacity: float | None = None
    salt: str | None = None  # None: from the clock
    most_open: int = 4096
    commit: str = "unknown"


def measure(options: Options, fire: Callable[[Record], None]) -> None:
    """Raises ScenarioError before anything is sent."""
    scenario = _chosen(options)
    rate = scenario.offered(options.capacity)
    client = Client(Server.at(options.host, options.key), scenario.timeout_s)
    model = options.model or first_model(client)
    salt = options.salt or f"{time.time_ns() // 1_000_000 % 10**6:06d}"
    due = list(moments(scenario.process, rate, scenario.seconds, scenario.seed))
    if not due:
        raise ScenarioError(f"seconds: no request is due in {scenario.seconds:g} s at {rate:g} requests a second")
    header = _header(options, scenario, model, rate, salt, len(due))
    options.out.mkdir(parents=True, exist_ok=True)
    _write(options.out, header | {"complete": False})
    with (
        (options.out / REQUESTS).open("w") as lines,
        feed.asks(options.scenario, options.scenarios, model, len(due), salt) as asks,
        _sampler(client, options.out / SERVER) as begun,
    ):

        def note(record: Record) -> None:
            lines.write(record.as_line() + "\n")
            fire(record)

        offered = offer(due, asks, client.exchange, note, options.most_open, begun)
    _write(options.out, header | {"complete": True, "started": offered.started, "unstarted": offered.unstarted})


def _chosen(options: Options) -> Scenario:
    scenario = scenarios.read(options.scenario, options.scenarios)
    changes: dict[str, object] = {}
    if options.rate is not None:
        changes |= {"rate": options.rate, "of_capacity": None}
    if options.seconds is not None:
        changes["seconds"] = options.seconds
    if options.process is not None:
        changes["process"] = options.process
    return Scenario.model_validate(scenario.model_dump() | changes)


def first_model(client: Client) -> str:
    status, body = client.get("/v1/models")
    if status != 200:
        raise ScenarioError(f"host: GET /v1/models was answered with {status}; is a key needed (OPENAI_API_KEY)?")
    return str(json.loads(body)["data"][0]["id"])


def _header(options: Options, scenario: Scenario, model: str, rate: float, salt: str, due: int) -> dict[str, object]:
    return {
        "label": options.label or options.scenario,
        "scenario": options.scenario,
        "told": scenario.model_dump(mode="json"),
        "host": options.host,
        "model": model,
        "rate": rate,
        "capacity": options.capacity,
        "seconds": scenario.seconds,
        "salt": salt,
        "due": due,
        "most_open": options.most_open,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": options.commit,
        "client": hardware(),
    }


def _write(folder: Path, header: dict[str, object]) -> None:
    (folder / RUN).write_text(json.dumps(header, indent=1) + "\n")


@contextmanager
def _sampler(client: Client, file: Path) -> Iterator[Callable[[float], None]]:
    """Asks the server every two seconds from when it is told that the run begins."""
    sampling: list[gevent.Greenlet] = []
    with file.open("w") as lines:
        try:
            yield lambda start: sampling.append(gevent.spawn(_sample, client, lines, start))
        finally:
            gevent.killall(sampling)


def _sample(client: Client, lines: TextIO, start: float) -> None:
    while sample := _sampled(client, start):
        lines.write(json.dumps({"at_s": round(sample.at_s, 3), "values": sample.values}) + "\n")
        gevent.sleep(SAMPLES_EVERY_S)


def _sampled(client: Client, start: float) -> Sample | None:
    try:
        status, body = client.get("/metrics")
    except OSError:
        return Sample(time.perf_counter() - start, {})  # it may be back for the next
    values = watched(body.decode()) if status == 200 else {}
    return Sample(time.perf_counter() - start, values) if values else None


def watched(text: str) -> dict[str, float]:
    """Of Prometheus' text format, summed over labels."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in WATCHED:
            value = float(line.rpartition(" ")[2])
            found[name] = found.get(name, 0.0) + (0.0 if math.isnan(value) else value)
    return found
