"""What a gateway adds, beside direct access and beside peers, all in front of the same engine, in turns.

    python -m benchmarks.overhead                                   # direct and ours
    benchmarks/peers.sh PEERS && python -m benchmarks.overhead --peers PEERS
    python -m benchmarks.overhead --soak 100000                     # our memory over so many requests

The engine and the clients, one C++ process, have the first core; every gateway has the second, and nobody else's turn
is at the same time. Each measurement is a line of --out; started again with the same --out, it goes on where it was.
Ends with the table that benchmarks/LOG.md holds, and one line of JSON: medians over the rounds. Needs g++ and taskset.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks import report, soak, targets
from benchmarks.targets import Target
from benchmarks.wire import Found, StandIn, stand_in
from benchmarks.workloads import Workload, stream, workloads
from kimi_serve.launch.up import free_port

ENGINE_CORE, GATEWAY_CORE = 0, 1
STREAMS = 64


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement of one target."""

    what: str
    measure: Callable[[StandIn, Target], Found]


def turns(folder: Path, seconds: float) -> list[Turn]:
    found = []
    for number, workload in enumerate(workloads()):
        found.append(_at_rate(workload, folder / f"request{number}", seconds))
        found.append(_flat_out(workload, folder / f"request{number}", seconds / 2))
    for name, window in ((report.ONE_BY_ONE, 1), (report.IN_BULK, 0)):
        found.append(_frames(name, folder / "stream", seconds / 3, window))
    return found


def _at_rate(workload: Workload, file: Path, seconds: float) -> Turn:
    def measure(engine: StandIn, target: Target) -> Found:
        file.write_bytes(target.request(workload.body))
        return engine.at_rate(target.port, file, workload.rate, seconds)

    return Turn(f"{workload.name}: {report.LATENCY}", measure)


def _flat_out(workload: Workload, file: Path, seconds: float) -> Turn:
    def measure(engine: StandIn, target: Target) -> Found:
        file.write_bytes(target.request(workload.body))
        return engine.flat_out(target.port, file, workload.clients, seconds)

    return Turn(f"{workload.name}: {report.THROUGHPUT}", measure)


def _frames(name: str, file: Path, seconds: float, window: int) -> Turn:
    def measure(engine: StandIn, target: Target) -> Found:
        file.write_bytes(target.request(stream()))
        return engine.frames(target.port, file, STREAMS, seconds, window)

    return Turn(name, measure)


def measured(turn: Turn, engine: StandIn, target: Target) -> dict[str, object]:
    before = target.cpu_s()
    found = turn.measure(engine, target)
    return {"target": target.name, "what": turn.what, "cpu_s": round(target.cpu_s() - before, 3), **asdict(found)}


class Ledger:
    """What was measured, a line each, in a file that outlives an interruption."""

    def __init__(self, file: Path, header: dict[str, object]) -> None:
        self._file = file
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if not lines:
            file.write_text(json.dumps(header) + "\n")
        elif lines[0] != header:
            raise SystemExit(f"{file}: holds another run ({lines[0]}); give another --out, or delete it")
        self.records = lines[1:]

    def has(self, number: int, what: str, target: str) -> bool:
        return any((r["round"], r["what"], r["target"]) == (number, what, target) for r in self.records)

    def add(self, record: dict[str, object]) -> None:
        self.records.append(record)
        with self._file.open("a") as file:
            file.write(json.dumps(record) + "\n")


def compare(args: argparse.Namespace, header: dict[str, object]) -> list[dict[str, object]]:
    ledger = Ledger(args.out, header)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = stack.enter_context(stand_in(folder, free_port(), ENGINE_CORE))
        found = list(_opened(stack, folder, engine, args))
        todo = turns(folder, args.seconds)
        with tqdm(total=args.rounds * len(todo) * len(found), unit="turn") as bar:
            for number in range(1, args.rounds + 1):
                for turn in todo:
                    for target in found:
                        bar.set_postfix_str(f"{target.name}, {turn.what}")
                        if not ledger.has(number, turn.what, target.name):
                            ledger.add({"round": number, **measured(turn, engine, target)})
                        bar.update()
    return ledger.records


def _opened(stack: ExitStack, folder: Path, engine: StandIn, args: argparse.Namespace) -> Iterator[Target]:
    yield Target("direct", engine.port, "none")
    if "ours" in args.targets:
        yield stack.enter_context(targets.ours(folder, engine.port, GATEWAY_CORE))
    if args.peers and "vllm-router" in args.targets:
        yield stack.enter_context(targets.vllm_router(args.peers, folder, engine.port, GATEWAY_CORE))
    if args.peers and "litellm" in args.targets:
        yield stack.enter_context(targets.litellm(args.peers, folder, engine.port, GATEWAY_CORE))


def commit() -> str:
    said = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="the environment that benchmarks/peers.sh made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement of latency; others are shorter")
    parser.add_argument("--out", type=Path, default=Path("overhead.jsonl"), help="where each measurement is noted")
    parser.add_argument("--targets", nargs="+", default=["ours", "vllm-router", "litellm"], help="beside direct access")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--soak", type=int, metavar="REQUESTS", help="only watch our memory over so many requests")
    args = parser.parse_args()
    if args.soak:
        print(json.dumps(soak.run(args.soak, ENGINE_CORE, GATEWAY_CORE)))
        return
    header: dict[str, object] = {"commit": commit(), "seconds": args.seconds, "targets": args.targets}
    records = compare(args, header)
    medians = report.medians(records)
    command = "python -m benchmarks.overhead " + " ".join(sys.argv[1:])
    print(report.section(header, command, records, medians))
    if args.plot:
        report.plot(medians, args.plot)
    print(json.dumps({"commit": header["commit"], "rounds": args.rounds, "medians": medians}))


if __name__ == "__main__":
    main()
