"""Load on a server that runs already, and what became of it: docs/load.md.

    python -m benchmarks.load list
    python -m benchmarks.load run chat --host http://127.0.0.1:8000
    python -m benchmarks.load capacity overload --host ...          # first, for scenarios that say of_capacity
    python -m benchmarks.load crosscheck chat --host ...            # the same by vllm bench serve
    python -m benchmarks.load report load --html load/report.html

A key comes from the environment, OPENAI_API_KEY.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.load import capacity, crosscheck, report, scenarios, tables
from benchmarks.load.exchange import Client, Server
from benchmarks.load.locusts import Asked, LocustError
from benchmarks.load.measure import first_model
from benchmarks.load.records import RunError
from benchmarks.load.scenarios import ScenarioError
from benchmarks.load.summary import summarize

FOLDER: Final = Path("load")
_TELLABLE: Final = (
    ScenarioError,
    RunError,
    LocustError,
    capacity.CapacityError,
    crosscheck.BenchError,
    OSError,
    ValueError,
)


def _run(args: argparse.Namespace) -> None:
    known = args.capacity or capacity.known(args.out, args.scenario)
    scenario = scenarios.read(args.scenario, args.scenarios)
    if args.rate is None:
        scenario.offered(known)  # says what is missing before locust starts
    label = args.label or args.scenario
    chosen = {"rate": args.rate, "seconds": args.seconds, "process": args.process, "capacity": known}
    run = _asked(args).run(args.out / label, label=label, **chosen)
    print(report.report([run], run.folder / report.PAGE))


def _capacity(args: argparse.Namespace) -> None:
    asked, search = _asked(args), capacity.Search(args.first, args.most, args.steps)

    def share_good(rate: float) -> float:
        """Even distances: by chance alone a Poisson process offers some tenths more or less in a few seconds."""
        folder = args.out / "capacity" / f"{args.scenario}-{rate:g}"
        seconds = max(args.seconds, args.least / rate)
        found = summarize(asked.run(folder, label=folder.name, rate=rate, seconds=seconds, process="constant"))
        print(f"{rate:g} requests/s for {seconds:g} s: {found.share_good:.1%} within the limits", file=sys.stderr)
        return found.share_good

    found = search.find(share_good)
    capacity.keep(args.out, args.scenario, found)
    print(json.dumps({"scenario": args.scenario, "capacity": found, "tried": search.tried}))


def _crosscheck(args: argparse.Namespace) -> None:
    asked = _asked(args)
    scenario = scenarios.read(args.scenario, args.scenarios)
    model = args.model or first_model(Client(Server.at(args.host, asked.key), scenario.timeout_s))
    rate = args.rate or scenario.offered(capacity.known(args.out, args.scenario))
    check = crosscheck.Check(
        asked, scenario, model, rate, args.seconds or scenario.seconds, args.out / f"crosscheck-{args.scenario}"
    )
    found = check.run(args.rounds)
    lines = [*tables.markdown(crosscheck.rows(found)), "", crosscheck.verdict(found)]
    told = {one.name: {**asdict(one), "percent": round(one.percent, 2)} for one in found}
    print("\n".join([*lines, json.dumps({"scenario": args.scenario, "rate": rate, "figures": told})]))


def _report(args: argparse.Namespace) -> None:
    page = args.html or args.folders[0] / report.PAGE
    print(report.report(report.runs_in(args.folders), page))
    print(f"the page: {page}", file=sys.stderr)


def _list(args: argparse.Namespace) -> None:
    for name in scenarios.names(args.scenarios):
        print(f"{name:14} {scenarios.read(name, args.scenarios).about}")


def _asked(args: argparse.Namespace) -> Asked:
    key = os.environ.get("OPENAI_API_KEY")
    return Asked(args.host, args.scenario, args.scenarios, key, args.model, args.most_open)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    run = _verb(verbs, "run", _run, "offer a scenario's requests")
    run.add_argument("--label", help="the run's name and folder; default: the scenario's")
    run.add_argument("--capacity", type=float, help="requests a second; default: what `capacity` measured")
    run.add_argument("--process", choices=["poisson", "constant"], help="instead of the scenario's")
    found = _verb(verbs, "capacity", _capacity, "find the rate that is answered within the limits", rate=False)
    found.add_argument("--first", type=float, default=0.5, help="the lowest rate, in requests a second")
    found.add_argument("--most", type=float, default=1024.0, help="where to give up")
    found.add_argument("--steps", type=int, default=4, help="halvings after the first rate that does not hold")
    found.add_argument("--least", type=int, default=20, help="requests at each rate, however long that takes")
    check = _verb(verbs, "crosscheck", _crosscheck, "the same requests by vllm bench serve")
    check.add_argument("--rounds", type=int, default=2, help="turns of each client")
    told = verbs.add_parser("report", help="tables and one page of runs")
    told.add_argument("folders", nargs="*", type=Path, default=[FOLDER], help="of runs, or of folders with runs")
    told.add_argument("--html", type=Path, help=f"default: {report.PAGE} in the first folder")
    told.set_defaults(do=_report)
    shown = verbs.add_parser("list", help="the scenarios")
    shown.add_argument("--scenarios", type=Path, default=scenarios.BUNDLED)
    shown.set_defaults(do=_list)
    return parser


def _verb(verbs, name, do, about, *, rate=True):  # type: ignore[no-untyped-def]  # argparse's own classes are private
    verb = verbs.add_parser(name, help=about)
    verb.add_argument("scenario")
    verb.add_argument("--host", default="http://127.0.0.1:8000", help="base URL, with or without /v1")
    verb.add_argument("--scenarios", type=Path, default=scenarios.BUNDLED, help="a TOML file of your own")
    verb.add_argument("--model", help="default: the first that the server names")
    verb.add_argument("--out", type=Path, default=FOLDER, help="folder of all runs")
    verb.add_argument("--most-open", type=int, default=4096, help="requests that may be open at once")
    if rate:
        verb.add_argument("--rate", type=float, help="requests a second, instead of the scenario's")
        verb.add_argument("--seconds", type=float, help="instead of the scenario's")
    else:
        verb.add_argument("--seconds", type=float, default=10.0, help="at each rate")
    verb.set_defaults(do=do)
    return verb


def main() -> None:
    args = _parser().parse_args()
    try:
        args.do(args)
    except _TELLABLE as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
