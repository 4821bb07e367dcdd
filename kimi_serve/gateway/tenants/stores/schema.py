"""The tables in PostgreSQL, as steps from one version to the next. Knows their names; no record.

A step only adds, so that gateways of the version before go on beside those of the next one.
"""

from __future__ import annotations

from typing import Final

from kimi_serve.gateway.tenants.postgres import Connection

STEPS: Final = (
    "CREATE TABLE kimi_serve_keys (id text PRIMARY KEY, record jsonb NOT NULL)",
    "CREATE TABLE kimi_serve_spending (account text, month text, tokens bigint NOT NULL, PRIMARY KEY (account, month))",
)
_LOCK: Final = 0x6B696D69_6B657973  # of two who start at once, one waits; any number that nobody else uses


async def migrate(connection: Connection) -> None:
    """All steps that are missing, or none. Where none is, reading is enough, so a gateway needs no right to create."""
    if await version(connection) >= len(STEPS):
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        await connection.execute("CREATE TABLE IF NOT EXISTS kimi_serve_schema (version int PRIMARY KEY)")
        done = await version(connection)
        for number, step in enumerate(STEPS[done:], done + 1):
            await connection.execute(step)
            await connection.execute("INSERT INTO kimi_serve_schema VALUES (%s)", [number])


async def version(connection: Connection) -> int:
    cursor = await connection.execute("SELECT to_regclass('kimi_serve_schema') IS NOT NULL")
    if await cursor.fetchone() != (True,):
        return 0
    cursor = await connection.execute("SELECT coalesce(max(version), 0) FROM kimi_serve_schema")
    row = await cursor.fetchone()
    assert row is not None, "an aggregate has a row"
    return int(row[0])
