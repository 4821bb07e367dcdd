"""Batches and the state of each of their lines, in SQLite. Knows rows; neither files nor requests.

A line has one result for good: whoever brings a second one is not heard. That is all that "exactly once" needs.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from kimi_serve.gateway.batches.lines import Line
from kimi_serve.gateway.batches.records import Batch, Ending, Problem, Status, Usage
from kimi_serve.gateway.sqlite import Sqlite
from kimi_serve.protocol.errors import ApiError, short

_NAMES: Final = tuple(field.name for field in fields(Batch))
_COLUMNS: Final = ", ".join(_NAMES)
_ADD: Final = f"INSERT INTO batches ({_COLUMNS}) VALUES ({', '.join('?' * len(_NAMES))})"
_ADD_USAGE: Final = ", ".join(f"{name} = {name} + ?" for name in Usage._fields)
_JSON: Final = ("metadata", "times", "problems")
_FLAGS: Final = ("has_output", "has_errors")
_CANCELLABLE: Final = ("validating", "in_progress")
_ON_ITS_WAY: Final = ("finalizing", "cancelling")

Result = tuple[int, str, bytes | None, int | None]  # number, custom_id, its line of the output, whether it is good


class BatchStore:
    def __init__(self, database: Sqlite) -> None:
        self._database = database

    async def add(self, batch: Batch, most: int) -> None:
        """Raises ApiError too_many_batches where `most` of the tenant have not ended."""

        def add(to: sqlite3.Connection) -> None:
            asked = "SELECT count(*) FROM batches WHERE tenant = ? AND ended IS NULL"
            (open_ones,) = to.execute(asked, (batch.tenant,)).fetchone()
            if open_ones >= most:
                message = f"{open_ones} batches of this key have not ended, the most that may be; wait for one"
                raise ApiError("too_many_batches", message, retry_after=60.0)
            to.execute(_ADD, _row(batch))

        await self._database.write(add)

    async def get(self, tenant: str, batch_id: str) -> Batch:
        """Raises ApiError batch_not_found, also where it is another tenant's."""
        return await self._database.read(lambda of: _found(of, tenant, batch_id))

    async def list(self, tenant: str, *, after: str | None, limit: int) -> Sequence[Batch]:
        """The newest first."""
        behind = "AND seq < (SELECT seq FROM batches WHERE id = :after AND tenant = :tenant)" if after else ""
        asked = f"SELECT {_COLUMNS} FROM batches WHERE tenant = :tenant {behind} ORDER BY seq DESC LIMIT :limit"
        values = {"tenant": tenant, "after": after, "limit": limit}
        return [_batch(row) for row in await self._database.read(lambda of: of.execute(asked, values).fetchall())]

    async def under_way(self) -> Sequence[Batch]:
        asked = f"SELECT {_COLUMNS} FROM batches WHERE ended IS NULL ORDER BY seq"
        return [_batch(row) for row in await self._database.read(lambda of: of.execute(asked).fetchall())]

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """Raises ApiError batch_has_ended. One that is being finished, or cancelled already, stays as it is."""

        def cancel(of: sqlite3.Connection) -> Batch:
            batch = _found(of, tenant, batch_id)
            if batch.status in _CANCELLABLE:
                _enter(of, batch, "cancelling")
            elif batch.status not in _ON_ITS_WAY:
                message = f"the batch has ended with status {batch.status!r}; there is nothing to cancel"
                raise ApiError("batch_has_ended", message)
            return _found(of, tenant, batch_id)

        return await self._database.write(cancel)

    async def begin(self, batch: Batch, lines: Sequence[Line]) -> Batch:
        """Its lines were read and are good. Where it was cancelled meanwhile it has none."""

        def begin(of: sqlite3.Connection) -> Batch:
            now = _found(of, batch.tenant, batch.id)
            if now.status != "validating":
                return now
            rows = [(batch.id, line.number, line.custom_id, line.start, line.length) for line in lines]
            of.executemany("INSERT INTO lines (batch, number, custom_id, start, length) VALUES (?, ?, ?, ?, ?)", rows)
            of.execute("UPDATE batches SET total = ? WHERE id = ?", (len(rows), batch.id))
            _enter(of, batch, "in_progress")
            return _found(of, batch.tenant, batch.id)

        return await self._database.write(begin)

    async def fail(self, batch: Batch, problems: Sequence[Problem]) -> None:
        """Nothing of it is asked, also where it was cancelled meanwhile."""

        def fail(of: sqlite3.Connection) -> None:
            told = json.dumps([problem.shown() for problem in problems])
            of.execute("UPDATE batches SET problems = ? WHERE id = ?", (told, batch.id))
            _enter(of, batch, "failed", is_end=True)

        await self._database.write(fail)

    async def unanswered(self, batch: Batch) -> Sequence[Line]:
        asked = "SELECT number, custom_id, start, length FROM lines WHERE batch = ? AND result IS NULL ORDER BY number"
        rows = await self._database.read(lambda of: of.execute(asked, (batch.id,)).fetchall())
        return [Line(*row) for row in rows]

    async def answer(self, batch: Batch, number: int, result: bytes, usage: Usage, *, is_good: bool) -> None:
        """The line's result, unless it has one, and what it took."""
        column = "completed" if is_good else "failed"

        def answer(of: sqlite3.Connection) -> None:
            change = "UPDATE lines SET result = ?, is_good = ? WHERE batch = ? AND number = ? AND result IS NULL"
            if of.execute(change, (result, is_good, batch.id, number)).rowcount:
                of.execute(f"UPDATE batches SET {column} = {column} + 1, {_ADD_USAGE} WHERE id = ?", (*usage, batch.id))

        await self._database.write(answer)

    async def finalize(self, batch: Batch) -> Ending:
        """No line is asked any more: the files are written from now on. How it will have ended."""

        def finalize(of: sqlite3.Connection) -> Ending:
            status = _found(of, batch.tenant, batch.id).status
            if status == "cancelling":
                return "cancelled"
            if status == "in_progress":
                _enter(of, batch, "finalizing")
            left = of.execute("SELECT 1 FROM lines WHERE batch = ? AND result IS NULL LIMIT 1", (batch.id,)).fetchone()
            return "completed" if left is None else "expired"

        return await self._database.write(finalize)

    async def results(self, batch: Batch, after: int, limit: int) -> Sequence[Result]:
        asked = (
            "SELECT number, custom_id, result, is_good FROM lines "
            "WHERE batch = ? AND number > ? ORDER BY number LIMIT ?"
        )
        return await self._database.read(lambda of: of.execute(asked, (batch.id, after, limit)).fetchall())

    async def end(self, batch: Batch, ending: Ending, *, has_output: bool, has_errors: bool) -> None:
        """Its files are there: the lines are not needed any more."""

        def end(of: sqlite3.Connection) -> None:
            change = "UPDATE batches SET has_output = ?, has_errors = ? WHERE id = ?"
            of.execute(change, (has_output, has_errors, batch.id))
            of.execute("DELETE FROM lines WHERE batch = ?", (batch.id,))
            _enter(of, batch, ending, is_end=True)

        await self._database.write(end)

    async def forget(self, before: float) -> None:
        """Those that ended before that time."""
        await self._database.write(lambda of: of.execute("DELETE FROM batches WHERE ended < ?", (int(before),)))


def _enter(of: sqlite3.Connection, batch: Batch, status: Status, *, is_end: bool = False) -> None:
    now = int(time.time())
    change = "UPDATE batches SET status = ?, ended = ?, times = json_set(times, ?, ?) WHERE id = ?"
    of.execute(change, (status, now if is_end else None, f"$.{status}", now, batch.id))


def _found(of: sqlite3.Connection, tenant: str, batch_id: str) -> Batch:
    row = of.execute(f"SELECT {_COLUMNS} FROM batches WHERE id = ? AND tenant = ?", (batch_id, tenant)).fetchone()
    if row is None:
        raise ApiError("batch_not_found", f"there is no batch {short(batch_id)}")
    return _batch(row)


def _row(batch: Batch) -> tuple[Any, ...]:
    return tuple(json.dumps(value) if name in _JSON and value is not None else value for name, value in _values(batch))


def _values(batch: Batch) -> list[tuple[str, Any]]:
    return [(name, getattr(batch, name)) for name in _NAMES]


def _batch(row: tuple[Any, ...]) -> Batch:
    values = dict(zip(_NAMES, row, strict=True))
    values |= {name: json.loads(values[name]) for name in _JSON if values[name] is not None}
    values |= {name: bool(values[name]) for name in _FLAGS}
    return Batch(**values)
