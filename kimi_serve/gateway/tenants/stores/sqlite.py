"""Keys and budgets in a SQLite database, for gateways on one machine. Knows its tables."""

import json
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kimi_serve.gateway.sqlite import Sqlite
from kimi_serve.gateway.tenants.errors import TenantsError
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.records import from_json, to_json
from kimi_serve.gateway.tenants.spending import Amounts

_TABLE: Final = "CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID"
_SPENDING: Final = (
    "CREATE TABLE IF NOT EXISTS spending "
    "(account TEXT, month TEXT, tokens INTEGER NOT NULL, PRIMARY KEY (account, month)) WITHOUT ROWID"
)
_SPEND: Final = (
    "INSERT INTO spending VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens RETURNING tokens"
)
_PUT: Final = "INSERT INTO keys VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record"


class SqliteKeys:
    """`async with SqliteKeys(path) as keys:`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = Sqlite(path, _prepare, self._failure)

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._database.__aexit__(kind, error, at)

    async def get(self, key_id: str) -> Key | None:
        rows = await self._rows("SELECT record FROM keys WHERE id = ?", key_id)
        return self._key(rows[0]) if rows else None

    async def all(self) -> list[Key]:
        return [self._key(row) for row in await self._rows("SELECT record FROM keys")]

    async def put(self, key: Key) -> None:
        values = (key.id, json.dumps(to_json(key)))
        await self._database.write(lambda connection: connection.execute(_PUT, values))

    async def spend(self, amounts: Amounts) -> Amounts:
        def add(connection: sqlite3.Connection) -> Amounts:
            return {name: connection.execute(_SPEND, (*name, tokens)).fetchone()[0] for name, tokens in amounts.items()}

        return await self._database.write(add)

    async def _rows(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        return await self._database.read(lambda connection: connection.execute(statement, values).fetchall())

    def _key(self, row: tuple[Any, ...]) -> Key:
        return from_json(json.loads(row[0]), str(self._path))

    def _failure(self, error: Exception) -> TenantsError:
        return TenantsError(f"{self._path}: {error}")  # SQLite's messages name tables and states, never values


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute(_TABLE)
    connection.execute(_SPENDING)
