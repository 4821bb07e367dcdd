"""What clients see while parts of a whole stack fail, one after the other: docs/faults.md.

    python -m benchmarks.faults                                    # two gateways, two fake engines, all faults
    python -m benchmarks.faults engine-kill gateway-restart --rate 40
    python -m benchmarks.faults --engine http://10.0.0.5:8000 --engine http://10.0.0.6:8000 --checkpoint DIR

Redis and PostgreSQL take part where they are installed. Ends with a table, and with exit status 1 where something that
docs/faults.md promises was not kept.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.faults.inject import Fault, faults
from benchmarks.faults.stack import Kind, Plan, Stack, Stores, running, served_model, stores
from benchmarks.faults.tally import Row, row, table, verdicts
from benchmarks.faults.traffic import Traffic

NANO: Final = Path(__file__).parents[2] / "kimi_serve" / "assets" / "kimi-vl-nano"
DIALS: Final = {"max_model_len": 8192, "ttft_s": 0.3, "itl_s": 0.02}


def measured(fault: Fault, stack: Stack, key: str, args: argparse.Namespace) -> Row:
    stack.wait_for_engines()
    body = {"model": served_model(stack, key), "max_tokens": args.tokens}
    header = {"authorization": f"Bearer {key}"}
    traffic = Traffic([one.url for one in stack.gateways], args.rate, body, header, args.patience)
    retries, began = stack.retries, time.monotonic()
    with traffic.flowing():
        time.sleep(args.around)
        fault.inject(stack, args.seconds)
        time.sleep(args.around)
    killed = {one.url: one.died for one in stack.gateways if one.died[0] > began}
    return row(fault, traffic.asked, stack.retries - retries, killed)


def by_wire(wanted: Sequence[Fault]) -> dict[Kind | None, list[Fault]]:
    """Those that one stack can meet, one after the other."""
    found: dict[Kind | None, list[Fault]] = {}
    for fault in wanted:
        found.setdefault(fault.kind if fault.on_wire else None, []).append(fault)
    return found


def chosen(names: Sequence[str], shared: Stores, *, are_far: bool) -> list[Fault]:
    """Without names, all that can be done here."""
    kinds = ("engine", "gateway", *shared.kinds)
    able = [
        one for one in faults() if one.kind in kinds and not (are_far and one.kind == "engine" and one.needs_process)
    ]
    if unable := set(names) - {one.name for one in able}:
        there = ", ".join(one.name for one in able)
        raise SystemExit(f"error: fault: {', '.join(sorted(unable))} cannot be done here; there are {there}")
    return [one for one in able if not names or one.name in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="default: all")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second; every second one streams")
    parser.add_argument("--seconds", type=float, default=6.0, help="that a fault lasts")
    parser.add_argument("--around", type=float, default=3.0, help="seconds of traffic before it, and after")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that a client waits for its answer")
    parser.add_argument("--tokens", type=int, default=40, help="of an answer, at most")
    parser.add_argument("--engines", type=int, default=2, help="fake ones")
    parser.add_argument("--engine", action="append", default=[], metavar="URL", help="a real one instead; repeat it")
    parser.add_argument("--checkpoint", type=Path, default=NANO, help="of the real ones")
    parser.add_argument("--no-stores", action="store_true", help="without Redis and PostgreSQL")
    parser.add_argument("--json", action="store_true", help="rows as JSON, one a line, in place of the table")
    return parser


def _tell(one: Row, *, is_json: bool) -> None:
    """As soon as it is known: a run takes minutes."""
    if is_json:
        print(json.dumps(asdict(one) | {"is_kept": one.is_kept}), flush=True)
    print(f"{one.fault}: {one.answered} of {one.sent} answered", file=sys.stderr)


def main() -> None:
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started ends with this program
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="kimi-serve-faults-") as made:
        folder, dials = Path(made), DIALS | {"tokens": args.tokens}
        plan = Plan(args.checkpoint, folder, engines=args.engines, urls=args.engine, dials=dials)
        with stores(folder, are_wanted=not args.no_stores) as shared:
            for wired, wanted in by_wire(chosen(args.faults, shared, are_far=bool(args.engine))).items():
                with running(plan, shared, wired) as stack:
                    for fault in wanted:
                        rows.append(measured(fault, stack, shared.key, args))
                        _tell(rows[-1], is_json=args.json)
    if not args.json:
        print("\n".join(table(rows)))
    broken = verdicts(rows)
    print("\n".join(broken or ["every promise was kept"]), file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
