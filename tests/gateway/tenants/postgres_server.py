"""A PostgreSQL server of our own, on a port and in a folder of its own, that tests may kill. Knows no table."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

PASSWORD = "a pass/word:with@signs"
MISSING = "postgres and initdb are not installed: keys in PostgreSQL are not tested here"


class PostgresServer:
    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._user = _unprivileged(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(secret, self._user)
        options = ["-U", "keeper", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "--locale=C"]
        self._run(["initdb", "-D", str(self._data), "-E", "UTF8", *options]).wait()
        self._databases = 0
        self.start()

    def url(self, database: str = "postgres", user: str = "keeper", password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty one."""
        self._databases += 1
        self.execute(f"CREATE DATABASE d{self._databases}")
        return self.url(f"d{self._databases}")

    def execute(self, statement: str, url: str | None = None) -> list[tuple[object, ...]]:
        with psycopg.connect(url or self.url(), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=50"]
            words = [word for setting in settings for word in ("-c", setting)]
            self.process = self._run(["postgres", "-D", str(self._data), "-p", str(self.port), *words])
            while self.process.poll() is None and time.monotonic() < deadline:
                try:
                    self.execute("SELECT 1")
                except psycopg.OperationalError:
                    time.sleep(0.02)
                else:
                    return
            time.sleep(0.1)  # what was killed may still hold its shared memory
        raise AssertionError("PostgreSQL did not start")

    def kill(self) -> None:
        for pid in (*self._backends(), self.process.pid):
            _send(pid, signal.SIGKILL)
        self.process.wait()

    @contextmanager
    def hung(self) -> Iterator[None]:
        """It accepts connections, as its kernel does, and says nothing."""
        pids = (self.process.pid, *self._backends())
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                _send(pid, signal.SIGCONT)

    def _backends(self) -> list[int]:
        command = ["ps", "-o", "pid=", "--ppid", str(self.process.pid)]
        listed = subprocess.run(command, check=False, capture_output=True, text=True)  # 1 where there is none
        return [int(pid) for pid in listed.stdout.split()]

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, cwd="/", user=self._user, stdout=quiet, stderr=quiet, start_new_session=True)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _unprivileged(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root: then a user without rights owns its folder and runs it."""
    if os.geteuid() != 0:
        return None
    user = next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
    shutil.chown(folder, user)
    return user


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    if shutil.which("postgres") is None or shutil.which("initdb") is None:
        pytest.skip(MISSING)
    # Not in pytest's own folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="kimi-serve-postgres-") as folder:
        server = PostgresServer(Path(folder))
        try:
            yield server
        finally:
            server.kill()
