"""`kimi-serve batch`: a file of requests through a server. Knows HTTP; keeps nothing but its output.

The output is where it stands: a line that is in it has its answer, so the same command goes on after any end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TextIO

import aiohttp

from kimi_serve.errors import ConfigError
from kimi_serve.gateway.batch_options import Options
from kimi_serve.gateway.batches import lines, results
from kimi_serve.gateway.batches.lines import Limits, Line
from kimi_serve.gateway.batches.patience import Answer, Patience
from kimi_serve.gateway.batches.records import ENDPOINTS, Endpoint
from kimi_serve.protocol.errors import ApiError

_BAR: Final = 30  # characters
_LIMITS: Final = Limits(lines=10_000_000, line_bytes=1 << 30)
_NAME: Final = "offline"  # where a batch's id stands
Output = Callable[[bytes], int | None]


def run(given: Options) -> int:
    """0 where every line has a good answer. Raises ConfigError before anything is asked."""
    return asyncio.run(answer_all(given, sys.stderr))


def check(options: Options) -> tuple[list[Line], dict[str, bool]]:
    """The lines, and which of them have an answer. Raises ConfigError; asks nothing."""
    endpoint = next((one for one in ENDPOINTS if one == options.endpoint), None)
    if endpoint is None:
        raise ConfigError(f"--endpoint: {options.endpoint} is not supported; expected one of {', '.join(ENDPOINTS)}")
    return _lines(options.input, endpoint), _answered(options.output)


async def answer_all(options: Options, shown: TextIO) -> int:
    found, done = check(options)
    ours = [done[line.custom_id] for line in found if line.custom_id in done]
    progress = Progress(shown, len(found), len(ours), ours.count(False))
    waiting = (line for line in found if line.custom_id not in done)
    headers = {"content-type": "application/json"}
    if options.key:
        headers["authorization"] = f"Bearer {options.key}"
    limits = aiohttp.ClientTimeout(total=options.timeout_s)
    connector = aiohttp.TCPConnector(limit=options.concurrency)
    with options.output.open("ab", buffering=0) as output:
        session = aiohttp.ClientSession(connector=connector, headers=headers, timeout=limits)
        async with session, asyncio.TaskGroup() as tasks:
            for _ in range(options.concurrency):
                tasks.create_task(_work(options, session, waiting, output.write, progress))
    progress.end()
    return 1 if progress.failed else 0


def _lines(file: Path, endpoint: Endpoint) -> list[Line]:
    """Raises ConfigError with the number of every wrong line."""
    try:
        found, problems = lines.read(file, endpoint, _LIMITS)
    except OSError as error:
        raise ConfigError(f"{file}: {os.strerror(error.errno or 0)}") from None
    if problems:
        told = [f"line {problem.line}: {problem.message}" if problem.line else problem.message for problem in problems]
        raise ConfigError(f"{file}: {'; '.join(told)}")
    return found


def _answered(output: Path) -> dict[str, bool]:
    """What an earlier run has answered, and whether well. A last line that broke off is cut away."""
    if not output.exists():
        return {}
    try:
        with output.open("rb+") as file:
            found, whole = {}, 0
            for raw in file:
                if raw.endswith(b"\n"):
                    said = json.loads(raw)
                    found[str(said["custom_id"])] = _is_good(said["response"])
                    whole += len(raw)
            file.truncate(whole)
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{output}: is not the output of a batch; name a file that is not there yet") from None
    except OSError as error:
        raise ConfigError(f"{output}: {os.strerror(error.errno or 0)}") from None
    return found


def _is_good(response: dict[str, object] | None) -> bool:
    return response is not None and response["status_code"] == 200


async def _work(
    options: Options, http: aiohttp.ClientSession, waiting: Iterator[Line], output: Output, bar: Progress
) -> None:
    for line in waiting:
        body = await asyncio.to_thread(lines.body_of, options.input, line.start, line.length)
        patience = Patience(options.attempts, options.retry_s)
        answer = await _ask(options, http, body)
        while (pause := patience.pause(answer)) is not None:
            await asyncio.sleep(pause)
            answer = await _ask(options, http, body)
        name = answer.headers.get("x-request-id", "")
        _write(output, results.answered(_NAME, line.number, line.custom_id, answer.status, name, answer.body))
        bar.count(is_good=answer.status == 200)


async def _ask(options: Options, http: aiohttp.ClientSession, body: bytes) -> Answer:
    """A server that cannot be reached is one that fails."""
    try:
        async with http.post(options.url + options.endpoint, data=body) as response:
            headers = {key.lower(): value for key, value in response.headers.items()}
            return Answer(response.status, headers, await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        message = f"the server did not answer: {type(error).__name__}"
        return Answer.refused(ApiError("upstream_error", message))


def _write(output: Output, line: bytes) -> None:
    """In one piece, at the end of the file: nothing is between two lines, whoever is killed when."""
    written = output(line)
    assert written == len(line), "a file takes what it is given, or raises"


@dataclass(slots=True)
class Progress:
    """A bar for a person; without a terminal one line at the end."""

    shown: TextIO
    total: int
    done: int
    failed: int
    _before: int = field(init=False)
    _began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._before = self.done
        if self.shown.isatty():
            self.shown.write(self._line())

    def count(self, *, is_good: bool) -> None:
        self.done += 1
        self.failed += not is_good
        if self.shown.isatty():
            self.shown.write(f"\r{self._line()}")
            self.shown.flush()

    def end(self) -> None:
        self.shown.write(f"\r{self._line()}\n" if self.shown.isatty() else f"{self._line()}\n")
        self.shown.flush()

    def _line(self) -> str:
        filled = _BAR * self.done // self.total
        rate = (self.done - self._before) / max(time.monotonic() - self._began, 1e-3)
        return f"[{'#' * filled}{'.' * (_BAR - filled)}] {self.done}/{self.total}, {self.failed} failed, {rate:.1f}/s "
