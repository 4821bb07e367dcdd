"""Keys and budgets in PostgreSQL, for gateways on many machines. Knows its statements; connections are another's.

Records that are asked for while a statement runs are read together by the next one, so one connection is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from psycopg.types.json import Jsonb

from kimi_serve.gateway.tenants.errors import AwayError, TenantsError
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.postgres import Postgres
from kimi_serve.gateway.tenants.records import from_json, to_json
from kimi_serve.gateway.tenants.spending import Amounts
from kimi_serve.gateway.tenants.stores.schema import migrate

_SOURCE: Final = "kimi_serve_keys"
_GET: Final = "SELECT id, record FROM kimi_serve_keys WHERE id = ANY(%(ids)s)"
_ALL: Final = "SELECT id, record FROM kimi_serve_keys"
_PUT: Final = (
    "INSERT INTO kimi_serve_keys VALUES (%(id)s, %(record)s) ON CONFLICT (id) DO UPDATE SET record = excluded.record"
)
_SPEND: Final = """
INSERT INTO kimi_serve_spending AS kept (account, month, tokens)
SELECT * FROM unnest(%(accounts)s::text[], %(months)s::text[], %(tokens)s::bigint[])
ON CONFLICT (account, month) DO UPDATE SET tokens = kept.tokens + excluded.tokens
RETURNING account, month, tokens
"""


class PostgresKeys:
    """`async with PostgresKeys(url, timeout=1.0) as keys:`; what is missing of the tables is made."""

    def __init__(self, url: str, *, timeout: float) -> None:
        self._server = Postgres(url, migrate, timeout=timeout)
        self._asked: dict[str, asyncio.Future[Key | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        _fail(self._asked, AwayError("the gateway is closing"))
        await self._server.__aexit__(kind, error, at)

    async def get(self, key_id: str) -> Key | None:
        answer = self._asked.get(key_id)
        if answer is None:
            answer = self._asked[key_id] = asyncio.get_running_loop().create_future()
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
        # Shielded: others may wait for the same record when one of them leaves.
        return await asyncio.shield(answer)

    async def all(self) -> list[Key]:
        return [from_json(record, _SOURCE) for _, record in await self._server.rows(_ALL, {})]

    async def put(self, key: Key) -> None:
        await self._server.rows(_PUT, {"id": key.id, "record": Jsonb(to_json(key))})

    async def spend(self, amounts: Amounts) -> Amounts:
        ordered = sorted(amounts)  # two gateways that lock rows in one order do not lock each other out
        values = {
            "accounts": [account for account, _ in ordered],
            "months": [month for _, month in ordered],
            "tokens": [amounts[name] for name in ordered],
        }
        return {(account, month): total for account, month, total in await self._server.rows(_SPEND, values)}

    async def _read(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            try:
                rows = await self._server.rows(_GET, {"ids": list(asked)})
            except TenantsError as error:
                _fail(asked, error)
            except BaseException:
                _fail(asked, AwayError("the gateway is closing"))
                raise
            else:
                _answer(asked, dict(rows))


def _answer(asked: Mapping[str, asyncio.Future[Key | None]], found: Mapping[str, Any]) -> None:
    for key_id, answer in asked.items():
        try:
            answer.set_result(from_json(found[key_id], _SOURCE) if key_id in found else None)
        except TenantsError as error:  # one record that is malformed ends no other key
            _fail({key_id: answer}, error)


def _fail(asked: Mapping[str, asyncio.Future[Key | None]], error: TenantsError) -> None:
    for answer in asked.values():
        answer.set_exception(type(error)(str(error)))  # its own: a traceback grows with each who raises it
        answer.exception()  # whoever still waits raises it; if nobody does, it is not news
