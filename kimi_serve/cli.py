"""The command line. Knows verbs and their options; what each does lives in kimi_serve.launch."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kimi_serve import __version__
from kimi_serve.errors import KimiServeError, LaunchError
from kimi_serve.launch import doctor, engine, flags, up

PASSED_ON = "every other option goes to `vllm serve` as it is, and wins over the default chosen here"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options, others = parser.parse_known_args(arguments)
    try:
        return _run(options, others)
    except KimiServeError as error:
        print(f"kimi-serve {options.verb}: error: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kimi-serve", description="Serve Kimi-VL.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"kimi_serve {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_engine(verbs)
    _add_up(verbs)
    _add_doctor(verbs)
    return parser


# MODEL is not declared to argparse where flags of vLLM pass through: it would take the value of one for MODEL.
def _add_engine(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "engine",
        help="become `vllm serve`, with defaults that fit this machine",
        description="Become `vllm serve MODEL` with defaults that fit this machine. MODEL is a directory or a hub id; "
        f"without it, the bundled kimi-vl-nano. {PASSED_ON[0].upper()}{PASSED_ON[1:]}.",
        usage="kimi-serve engine [MODEL] [--dry-run] [--vllm PATH] [any option of vllm serve]",
        allow_abbrev=False,
    )
    verb.add_argument("--dry-run", action="store_true", help="print the plan as one JSON line, and start nothing")
    verb.add_argument("--vllm", type=Path, metavar="PATH", help="the vllm executable (default: this environment's)")


def _add_up(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "up",
        help="start an engine, wait until it answers, stop it on Ctrl-C",
        description=f"Start an engine, wait until it answers, and stop it cleanly on Ctrl-C or SIGTERM; {PASSED_ON}.",
        usage="kimi-serve up [MODEL] [--host HOST] [--port PORT] [--log FILE] [--timeout S] [any option of vllm serve]",
        allow_abbrev=False,
    )
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    verb.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    verb.add_argument(
        "--log", type=Path, metavar="FILE", help="the engine's log (default: in ~/.local/state/kimi_serve)"
    )
    verb.add_argument("--timeout", type=float, default=1800, metavar="S", help="seconds to load (default: %(default)s)")
    verb.add_argument("--vllm", type=Path, metavar="PATH", help="the vllm executable (default: this environment's)")


def _add_doctor(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "doctor",
        help="say what this machine can run, and whether the plugin is in use",
        description="Say what this machine can run, and whether vLLM would use this package's classes. "
        "The exit code is 1 where a check fails, and each failing check says what to do.",
        allow_abbrev=False,
    )
    verb.add_argument("model", nargs="?", metavar="MODEL", help="a checkpoint's directory (default: the bundled one)")
    verb.add_argument("--json", action="store_true", help="one JSON line")


def _run(options: argparse.Namespace, others: list[str]) -> int:
    if options.verb == "doctor":
        if others:
            raise LaunchError(f"{others[0]}: not an option of doctor")
        return doctor.run(options.model, as_json=options.json)
    model, passed_on = split_model(others)
    if options.verb == "engine":
        return _engine(options, model, passed_on)
    return _up(options, model, passed_on)


def split_model(others: Sequence[str]) -> tuple[str | None, list[str]]:
    """MODEL comes first; a word after a flag is that flag's value."""
    if others and not others[0].startswith("-"):
        return others[0], list(others[1:])
    return None, list(others)


def _engine(options: argparse.Namespace, model: str | None, passed_on: list[str]) -> int:
    plan = engine.prepare(model, passed_on, options.vllm, os.environ)
    if not options.dry_run:
        engine.become(plan)
    print(engine.as_json(plan))
    return 0


def _up(options: argparse.Namespace, model: str | None, passed_on: list[str]) -> int:
    listen = ["--host", options.host, "--port", str(options.port)]
    plan = engine.prepare(model, [*listen, *passed_on], options.vllm, os.environ)
    log = options.log or _state_folder() / f"engine-{options.port}.log"
    key = flags.given(passed_on).get("--api-key") or os.environ.get("VLLM_API_KEY")
    return up.run(plan, up.Options(options.host, options.port, log, options.timeout, key))


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kimi_serve"


if __name__ == "__main__":
    sys.exit(main())
