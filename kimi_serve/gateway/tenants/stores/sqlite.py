"""Keys and budgets in a SQLite database, for gateways on one machine. Knows its tables; one thread touches it."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from kimi_serve.gateway.tenants.errors import TenantsError
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.records import from_json, to_json
from kimi_serve.gateway.tenants.spending import Amounts

BUSY_SECONDS: Final = 2.0  # how long one waits for another process's write

_TABLE: Final = "CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID"
_SPENDING: Final = (
    "CREATE TABLE IF NOT EXISTS spending "
    "(account TEXT, month TEXT, tokens INTEGER NOT NULL, PRIMARY KEY (account, month)) WITHOUT ROWID"
)
_SPEND: Final = (
    "INSERT INTO spending VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens RETURNING tokens"
)
_PUT: Final = "INSERT INTO keys VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record"

T = TypeVar("T")


class SqliteKeys:
    """`async with SqliteKeys(path) as keys:`; the file is made where it is missing, with mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._run(self._open)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._run(self._connected().close)
        self._thread.shutdown()

    async def get(self, key_id: str) -> Key | None:
        rows = await self._run(lambda: self._rows("SELECT record FROM keys WHERE id = ?", (key_id,)))
        return self._key(rows[0]) if rows else None

    async def all(self) -> list[Key]:
        return [self._key(row) for row in await self._run(lambda: self._rows("SELECT record FROM keys", ()))]

    async def put(self, key: Key) -> None:
        values = (key.id, json.dumps(to_json(key)))
        await self._run(lambda: self._rows(_PUT, values))

    async def spend(self, amounts: Amounts) -> Amounts:
        return await self._run(lambda: self._spend(amounts))

    def _spend(self, amounts: Amounts) -> Amounts:
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            return {name: self._rows(_SPEND, (*name, tokens))[0][0] for name, tokens in amounts.items()}

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            # SQLite's messages name tables and states, never values.
            raise TenantsError(f"{self._path}: {error}") from None

    def _open(self) -> None:
        self._path.touch(mode=0o600)  # SQLite would make it readable for all; its -wal and -shm take this mode
        self._connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            self._rows("PRAGMA journal_mode = WAL", ())  # those who read do not wait for the one who writes
            self._rows(_TABLE, ())
            self._rows(_SPENDING, ())
        except sqlite3.Error:
            self._connection.close()
            raise

    def _rows(self, statement: str, values: tuple[str | int, ...]) -> list[tuple[Any, ...]]:
        return self._connected().execute(statement, values).fetchall()

    def _connected(self) -> sqlite3.Connection:
        assert self._connection is not None, "used outside of `async with`"
        return self._connection

    def _key(self, row: tuple[Any, ...]) -> Key:
        return from_json(json.loads(row[0]), str(self._path))
