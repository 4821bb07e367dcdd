"""A SQLite database and the one thread that touches it. Knows no table."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

BUSY_SECONDS: Final = 2.0  # how long one waits for another process's write

T = TypeVar("T")


class Sqlite:
    """`async with Sqlite(path, prepare, failure) as database:`; the file is made where it is missing, with mode 0600.

    `prepare` makes the tables. Whatever SQLite or the disk refuses is raised as what `failure` makes of it.
    """

    def __init__(
        self, path: Path, prepare: Callable[[sqlite3.Connection], None], failure: Callable[[Exception], Exception]
    ) -> None:
        self._path, self._prepare, self._failure = path, prepare, failure
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=path.name)
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._on_thread(self._open)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._on_thread(self._connected().close)
        self._thread.shutdown()

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Waits for nobody who writes."""
        return await self._on_thread(lambda: work(self._connected()))

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """All of the work in one transaction, or nothing of it. Who is cancelled meanwhile does not stop it."""
        return await self._on_thread(lambda: self._transaction(work))

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            return work(connection)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from None

    def _open(self) -> None:
        self._path.touch(mode=0o600)  # SQLite would make it readable for all; its -wal and -shm take this mode
        self._connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")  # those who read do not wait for the one who writes
            self._prepare(self._connection)
        except sqlite3.Error:
            self._connection.close()
            raise

    def _connected(self) -> sqlite3.Connection:
        assert self._connection is not None, "used outside of `async with`"
        return self._connection
