"""A child process with all its descendants. Knows sessions and signals; never what runs in it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from kimi_serve.errors import LaunchError

POLITE = 15.0  # seconds for the child to end with its own children
FIRM = 5.0  # seconds for what is left, after a signal to each of them


class Family:
    """Starts a command in a session of its own, and leaves none of its processes behind when it ends."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as sink:
            try:
                self._child = subprocess.Popen(
                    argv, env=dict(environ), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
                )
            except OSError as error:
                raise LaunchError(f"cannot run {argv[0]}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while the child runs; minus the signal's number where one ended it."""
        return self._child.poll()

    def members(self) -> list[int]:
        """The living processes of the session; zombies, which only their own parent can clear, do not count."""
        self._child.poll()
        return [pid for pid, state, session in _processes() if session == self.pid and state != "Z"]

    def stop(self) -> None:
        """Asks the child first, then everyone, then insists; returns when nothing is left."""
        if self.exit_code is None:
            self._child.terminate()
            _wait(POLITE, lambda: not self.members())
        for urge in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.members():
                with suppress(ProcessLookupError):
                    os.kill(pid, urge)
            _wait(FIRM, lambda: not self.members())
        if left := self.members():
            raise LaunchError(f"processes {left} of the engine are still running")


def _wait(seconds: float, is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not is_over() and time.monotonic() < deadline:
        time.sleep(0.05)


def _processes() -> list[tuple[int, str, int]]:
    """(pid, state, session) of every process that can be seen."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it ended while we looked
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found.append((int(entry.name), fields[0], int(fields[3])))
    return found
