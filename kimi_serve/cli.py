"""The command line. Knows verbs and their options; what each does lives in kimi_serve.launch."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kimi_serve import __version__
from kimi_serve.errors import KimiServeError, LaunchError
from kimi_serve.gateway import batch_options
from kimi_serve.launch import doctor, engine, flags, up
from kimi_serve.merge import options as merge_options
from kimi_serve.plan import options as plan_options
from kimi_serve.quantize import options as quantize_options

LOADING_TIMEOUT = 1800.0  # seconds
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
    _add_gateway(verbs)
    _add_keys(verbs)
    _add_batch(verbs)
    _add_doctor(verbs)
    _add_quantize(verbs)
    _add_merge(verbs)
    _add_plan(verbs)
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
        help="start an engine and a gateway, wait until they answer, stop them on Ctrl-C",
        description="Start an engine and the gateway in front of it, wait until they answer, and stop them cleanly on "
        f"Ctrl-C or SIGTERM. The gateway's settings come from the environment (KIMI_SERVE_...); {PASSED_ON}.",
        usage="kimi-serve up [MODEL] [--host HOST] [--port PORT] [--engine-only] [--log FILE] [--timeout S] "
        "[any option of vllm serve]",
        allow_abbrev=False,
    )
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    verb.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    verb.add_argument("--engine-only", action="store_true", help="no gateway: vLLM itself listens on the port")
    verb.add_argument(
        "--log", type=Path, metavar="FILE", help="the engine's log (default: in ~/.local/state/kimi_serve)"
    )
    verb.add_argument(
        "--timeout", type=float, default=LOADING_TIMEOUT, metavar="S", help="seconds to load (default: %(default)s)"
    )
    verb.add_argument("--vllm", type=Path, metavar="PATH", help="the vllm executable (default: this environment's)")


def _add_gateway(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "gateway",
        help="listen in front of engines: exact costs, limits, a fair queue",
        description="Listen in front of one or more engines. Every setting can stand in the file, or in the "
        "environment as KIMI_SERVE_SECTION__NAME; docs/gateway.md lists them.",
        allow_abbrev=False,
    )
    verb.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML (deploy/gateway.toml is annotated)")
    verb.add_argument("--engine", action="append", metavar="URL", help="an engine's base URL; may be repeated")
    verb.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder with the checkpoint's tokenizer")
    verb.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    verb.add_argument("--port", type=int, help="port to listen on (default: 8000)")
    verb.add_argument("--print-config", action="store_true", help="print the settings in force as JSON, and stop")


def _add_keys(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "keys",
        help="make, list, revoke and rotate the gateway's keys",
        description="Make, list, revoke and rotate the gateway's keys; docs/keys.md says what a key is.",
        allow_abbrev=False,
    )
    if importlib.util.find_spec("argon2") is not None:  # a part of the gateway's packages, which an engine can lack
        from kimi_serve.gateway import keys_command

        keys_command.add_arguments(verb)


def _add_batch(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "batch",
        help="answer a file of requests, with a progress bar",
        description="Answer every line of a file through a server that runs, or through one that runs only meanwhile "
        "(--model). Stopped at any point, the same command goes on; docs/files.md says what the lines look like. With "
        f"--model, {PASSED_ON}.",
        usage="kimi-serve batch INPUT OUTPUT [--url URL | --model DIR [any option of vllm serve]] [options]",
        allow_abbrev=False,
    )
    batch_options.add_arguments(verb)


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


def _add_quantize(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "quantize",
        help="write a checkpoint in int4 or int8, as vLLM loads it",
        description="Write a quantized copy of a checkpoint, in the compressed-tensors format that vLLM loads. "
        "Stopped at any point, the same command goes on; docs/quantize.md says what is quantized and how well.",
        allow_abbrev=False,
    )
    quantize_options.add_arguments(verb)


def _add_merge(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "merge-lora",
        help="add a LoRA adapter into a checkpoint's weights",
        description="Write a checkpoint with a LoRA adapter (PEFT, as LLaMA-Factory saves it) added into its weights. "
        "Stopped at any point, the same command goes on; docs/lora.md says when an adapter is merged and when served.",
        allow_abbrev=False,
    )
    merge_options.add_arguments(verb)


def _add_plan(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verb = verbs.add_parser(
        "plan",
        help="compute what a request costs and what memory a checkpoint needs",
        description="Compute what a request costs in tokens, and the memory that a checkpoint needs: weights in bf16, "
        "int8 and int4, cache, activations, the GPUs that hold it, this machine's CPU. MODEL is a directory; without "
        "it and without --preset, the bundled kimi-vl-nano. docs/plan.md says how each figure is derived.",
        allow_abbrev=False,
    )
    plan_options.add_arguments(verb)


def _run(options: argparse.Namespace, others: list[str]) -> int:
    if options.verb == "doctor":
        if others:
            raise LaunchError(f"{others[0]}: not an option of doctor")
        return doctor.run(options.model, as_json=options.json)
    if options.verb == "gateway":
        if others:
            raise LaunchError(f"{others[0]}: not an option of gateway")
        return _gateway(options)
    if options.verb == "keys":
        return _keys(options, others)
    if options.verb == "batch":
        return _batch(options, others)
    if options.verb == "quantize":
        return _quantize(options, others)
    if options.verb == "merge-lora":
        return _merge(options, others)
    if options.verb == "plan":
        return _plan(options, others)
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
    engine_port = None if options.engine_only else up.free_port()
    listen = ["--host", options.host, "--port", str(options.port)]
    if engine_port is not None:
        listen = ["--host", "127.0.0.1", "--port", str(engine_port)]
    plan = engine.prepare(model, [*listen, *passed_on], options.vllm, os.environ)
    log = options.log or _state_folder() / f"engine-{options.port}.log"
    key = flags.given(passed_on).get("--api-key") or os.environ.get("VLLM_API_KEY")
    return up.run(plan, up.Options(options.host, options.port, log, options.timeout, key, engine_port))


def _gateway(options: argparse.Namespace) -> int:
    try:
        from kimi_serve.gateway import run, settings
    except ModuleNotFoundError as error:
        raise LaunchError(f"gateway: {error.name} is not installed; pip install 'kimi_serve[gateway]'") from error
    read = settings.from_command_line(options.config, options.engine, options.checkpoint, options.host, options.port)
    if options.print_config:
        print(read.model_dump_json())
        return 0
    return run.run(read)


def _keys(options: argparse.Namespace, others: list[str]) -> int:
    if importlib.util.find_spec("argon2") is None:
        raise LaunchError("keys: argon2-cffi is not installed; pip install 'kimi_serve[gateway]'")
    if others:
        raise LaunchError(f"{others[0]}: not an option of keys")
    from kimi_serve.gateway import keys_command

    print(keys_command.run(options))
    return 0


def _batch(options: argparse.Namespace, others: list[str]) -> int:
    for package in ("msgspec", "aiohttp"):
        if importlib.util.find_spec(package) is None:
            raise LaunchError(f"batch: {package} is not installed; pip install 'kimi_serve[gateway]'")
    from kimi_serve.gateway import batch_command

    given = batch_options.from_arguments(options)
    if options.model is None:
        if others:
            raise LaunchError(f"{others[0]}: not an option of batch; options of vllm serve need --model")
        return batch_command.run(given)
    batch_command.check(given)  # before anything is started
    port, engine_port = up.free_port(), up.free_port()
    plan = engine.prepare(
        options.model, ["--host", "127.0.0.1", "--port", str(engine_port), *others], options.vllm, os.environ
    )
    listen = up.Options("127.0.0.1", port, _state_folder() / f"engine-{port}.log", LOADING_TIMEOUT, None, engine_port)
    return up.during(plan, listen, lambda url: batch_command.run(replace(given, url=url)))


def _quantize(options: argparse.Namespace, others: list[str]) -> int:
    _require_torch(options.verb, others)
    from kimi_serve.quantize import command

    print(command.run(quantize_options.from_arguments(options)))
    return 0


def _merge(options: argparse.Namespace, others: list[str]) -> int:
    _require_torch(options.verb, others)
    from kimi_serve.merge import command

    print(command.run(merge_options.from_arguments(options)))
    return 0


def _require_torch(verb: str, others: list[str]) -> None:
    if others:
        raise LaunchError(f"{others[0]}: not an option of {verb}")
    for package in ("torch", "tqdm"):
        if importlib.util.find_spec(package) is None:
            raise LaunchError(f"{verb}: {package} is not installed; it comes with vLLM")


def _plan(options: argparse.Namespace, others: list[str]) -> int:
    if others:
        raise LaunchError(f"{others[0]}: not an option of plan")
    from kimi_serve.plan import command  # tiktoken and numpy come with it

    print(command.run(plan_options.from_arguments(options)))
    return 0


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kimi_serve"


if __name__ == "__main__":
    sys.exit(main())
