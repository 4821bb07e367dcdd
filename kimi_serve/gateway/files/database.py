"""The SQLite database of files and batches. Knows its tables and its one thread; never what a row means."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from kimi_serve.protocol.errors import ApiError

BUSY_SECONDS: Final = 2.0  # how long one waits for somebody who looks into the database from outside

# From one version to the next; a step that was released is never changed.
_STEPS: Final = (
    """
    CREATE TABLE files (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, hash TEXT NOT NULL,
        bytes INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER, filename TEXT NOT NULL, purpose TEXT NOT NULL
    );
    CREATE INDEX files_of_tenant ON files (tenant, seq);
    CREATE INDEX files_of_hash ON files (hash);
    CREATE INDEX files_that_expire ON files (expires) WHERE expires IS NOT NULL;
    CREATE TABLE batches (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, key TEXT,
        endpoint TEXT NOT NULL, input_file TEXT NOT NULL, input_hash TEXT NOT NULL, completion_window TEXT NOT NULL,
        metadata TEXT, output_expires INTEGER, output_file TEXT NOT NULL, error_file TEXT NOT NULL,
        status TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL, ended INTEGER,
        times TEXT NOT NULL DEFAULT '{}', problems TEXT,
        total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
        has_output INTEGER NOT NULL DEFAULT 0, has_errors INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX batches_of_tenant ON batches (tenant, seq);
    CREATE INDEX batches_under_way ON batches (seq) WHERE ended IS NULL;
    CREATE INDEX batches_of_hash ON batches (input_hash) WHERE ended IS NULL;
    CREATE TABLE lines (
        batch TEXT NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, start INTEGER NOT NULL,
        length INTEGER NOT NULL, result BLOB, is_good INTEGER, PRIMARY KEY (batch, number)
    );
    """,
)

T = TypeVar("T")
logger = logging.getLogger(__name__)


class FilesAwayError(ApiError):
    """The folder or its database does not do what it should; later it may."""

    def __init__(self) -> None:
        message = "the files cannot be reached at the moment; retry later"
        super().__init__("files_unavailable", message, retry_after=5.0)


class Database:
    """`async with Database(path) as database:`; the file is made where it is missing, with mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="files")
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

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
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
            # SQLite's messages name tables and states, never values.
            logger.warning("the database of files fails", extra={"reason": f"{type(error).__name__}: {error}"})
            raise FilesAwayError from None

    def _open(self) -> None:
        self._path.touch(mode=0o600)  # SQLite would make it readable for all; its -wal and -shm take this mode
        self._connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")  # what a client was told is kept, whatever happens
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            for number, step in enumerate(_STEPS[version:], version + 1):
                self._connection.executescript(f"BEGIN; {step} PRAGMA user_version = {number}; COMMIT;")
        except sqlite3.Error:
            self._connection.close()
            raise

    def _connected(self) -> sqlite3.Connection:
        assert self._connection is not None, "used outside of `async with`"
        return self._connection
