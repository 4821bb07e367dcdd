"""`kimi-serve up`: one engine and the gateway in front of it, watched from start to stop.

Knows HTTP and signals; both are other processes.
"""

import json
import os
import secrets
import shlex
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kimi_serve.errors import LaunchError
from kimi_serve.launch import defaults, gateway, progress
from kimi_serve.launch.family import Family
from kimi_serve.launch.footprint import BUNDLED

SAMPLE = BUNDLED.parent / "sample.png"
LOWEST_PORT = 20_000
PORTS_GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
POLL = 0.25  # seconds
GATEWAY_STARTS_IN = 60.0  # seconds
ASK_TIMEOUT = 5.0  # seconds for one answer of /health
# No proxy: the engine is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

NANO_NOTE = """\
kimi-vl-nano is a very small model in Kimi-VL's layout, trained for a few hours on synthetic pictures to show that the
server works. It is NOT Kimi-VL: in such pictures it names colours and shapes, reads most numbers and words, and is
WRONG about much else; it knows nothing of photos. Its README.md, beside the weights, has the figures. For real answers:
kimi-serve up DIRECTORY_OF_KIMI_VL"""


@dataclass(frozen=True, slots=True)
class Options:
    host: str
    port: int
    log: Path
    timeout: float  # seconds until the engine must answer
    api_key: str | None
    engine_port: int | None = None  # None: no gateway, the engine itself listens on host and port

    @property
    def engine_url(self) -> str:
        return base_url(self) if self.engine_port is None else f"http://127.0.0.1:{self.engine_port}"

    @property
    def gateway_log(self) -> Path:
        return self.log.with_name(f"gateway-{self.port}.log")


def run(plan: defaults.Plan, options: Options) -> int:
    """Starts, shows, watches and stops the engine; returns the exit code of the command line."""
    require_free(options.host, options.port)
    stopping = _catch_signals()
    print(f"starting {plan.argv[2]} (log: {options.log})", flush=True)
    for note in plan.notes:
        print(f"note: {note}", flush=True)
    with _serving(plan, options, stopping) as (model, families):
        if model is not None and not stopping.is_set():
            has_page = _is_healthy(f"{base_url(options)}/playground")  # a setting, which only the gateway has read
            print(greeting(model, options, has_page=has_page), flush=True)
            _watch(families, stopping)
        print("stopping", flush=True)
    print("stopped; no process is left", flush=True)
    return 0


def during(plan: defaults.Plan, options: Options, work: Callable[[str], int]) -> int:
    """Serves while `work(url)` is done; its exit code. A signal ends both, and so does the end of engine or gateway."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit)
    with _serving(plan, options, threading.Event()) as (_, families), _watched(families):
        return work(base_url(options))


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def _watched(families: Sequence[Family]) -> Iterator[None]:
    """Raises LaunchError in this thread where a process that should serve has ended."""
    is_over, lost = threading.Event(), list[LaunchError]()

    def watch() -> None:
        try:
            _watch(families, is_over)
        except LaunchError as error:
            lost.append(error)
            os.kill(os.getpid(), signal.SIGTERM)  # to the main thread, whatever it waits for

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except SystemExit:
        if lost:
            raise lost[0] from None
        raise
    finally:
        is_over.set()
        thread.join()


@contextmanager
def _serving(
    plan: defaults.Plan, options: Options, stopping: threading.Event
) -> Iterator[tuple[str | None, list[Family]]]:
    """The served model's name, or None where a signal came first; and what runs until the end."""
    if options.engine_port is not None:
        gateway.require_installed()
    with ExitStack() as running:
        engine = running.enter_context(Family(plan.argv, {**os.environ, **plan.environment}, options.log))
        model = _await_ready(engine, options, stopping)
        families = [engine]
        if model is not None and options.engine_port is not None:
            families.append(running.enter_context(_front(plan.argv[2], options)))
            _await_gateway(families, options, stopping)
        yield model, families


def _front(model: str, options: Options) -> Family:
    argv = gateway.command(options.host, options.port, options.engine_url, gateway.checkpoint(model))
    return Family(argv, {**gateway.DEFAULTS, **os.environ, **gateway.environment(options.api_key)}, options.gateway_log)


def _await_gateway(families: Sequence[Family], options: Options, stopping: threading.Event) -> None:
    deadline = time.monotonic() + GATEWAY_STARTS_IN
    while not _is_healthy(f"{base_url(options)}/readyz") and not stopping.wait(POLL):
        _require_alive(families)
        if time.monotonic() > deadline:
            raise LaunchError(
                f"the gateway was not ready within {GATEWAY_STARTS_IN:.0f} s; its log ends:\n"
                + progress.last_lines(options.gateway_log)
            )


def require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"port: cannot listen on {host}:{port}: {error.strerror}; choose another with --port"
            ) from error


def free_port() -> int:
    """A port that nothing listens on, from 20000 up. LaunchError where none is found.

    An engine binds it a minute later, so it is none of those that the system gives out unasked meanwhile.
    """
    for _ in range(100):
        port = LOWEST_PORT + secrets.randbelow(_first_given_out() - LOWEST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LaunchError(f"no free port from {LOWEST_PORT} to {_first_given_out() - 1} on 127.0.0.1")


def _first_given_out() -> int:
    try:
        first = int(PORTS_GIVEN_OUT.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 32_768  # Linux's default
    return max(first, LOWEST_PORT + 1000)


def greeting(model: str, options: Options, *, has_page: bool = False) -> str:
    url = base_url(options)
    lines = [f"ready: {url}/v1 (model {model!r})"]
    if has_page:
        lines.append(f"in a browser: {url}/playground")
    if model == BUNDLED.name:
        lines += ["", NANO_NOTE]
    lines += ["", "try it:", curl(url, model, needs_key=options.api_key is not None), "", "Ctrl-C stops it."]
    return "\n".join(lines)


def base_url(options: Options) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(options.host, options.host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{options.port}"


def curl(url: str, model: str, *, needs_key: bool) -> str:
    """One line for a shell, with the sample picture inlined by the shell itself."""
    body = json.dumps(
        {
            "model": model,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,PICTURE"}},
                        {"type": "text", "text": "What is in the picture?"},
                    ],
                }
            ],
        }
    )
    before, _, after = body.partition("PICTURE")
    picture = f'"$(base64 -w0 {shlex.quote(str(SAMPLE))})"'
    headers = "-H 'Content-Type: application/json'" + (' -H "Authorization: Bearer $VLLM_API_KEY"' if needs_key else "")
    data = shlex.quote(before) + picture + shlex.quote(after)
    return f"curl -s {url}/v1/chat/completions {headers} -d {data}"


def _catch_signals() -> threading.Event:
    stopping = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    return stopping


def _await_ready(family: Family, options: Options, stopping: threading.Event) -> str | None:
    """The name of the served model, or None where a signal came first."""
    shown = progress.Progress(family.log)
    try:
        while not stopping.wait(POLL):
            shown.tick()
            _require_alive([family])
            if _is_healthy(f"{options.engine_url}/health"):
                return served_model(options.engine_url, options.api_key)
            if shown.elapsed > options.timeout:
                raise LaunchError(
                    f"the engine did not answer within {options.timeout:.0f} s (--timeout); its log ends:\n"
                    + progress.last_lines(family.log)
                )
    finally:
        shown.close()
    return None


def _require_alive(families: Sequence[Family]) -> None:
    for name, family in zip(("engine", "gateway"), families, strict=False):
        if family.exit_code is not None:
            raise LaunchError(
                f"the {name} ended with code {family.exit_code}; its log ({family.log}) ends:\n"
                + progress.last_lines(family.log)
            )


def _is_healthy(url: str) -> bool:
    try:
        with _opener.open(url, timeout=ASK_TIMEOUT) as response:
            return bool(response.status == 200)
    except OSError:  # refused, reset, timed out, or an HTTP error: not yet
        return False


def served_model(url: str, key: str | None) -> str:
    """Proof that the API answers, not only the health check."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with _opener.open(request, timeout=ASK_TIMEOUT) as response:
            name = json.load(response)["data"][0]["id"]
    except (OSError, ValueError, LookupError) as error:
        raise LaunchError(f"{url}/v1/models: no model is listed there: {error}") from error
    return str(name)


def _watch(families: Sequence[Family], stopping: threading.Event) -> None:
    while not stopping.wait(POLL):
        _require_alive(families)
