"""PostgreSQL over one connection, as much of it as keys and budgets need. Knows timeouts and outages; no table.

One statement runs at a time. One that takes too long closes the connection, since nothing behind it would be faster.
While there is no connection a task tries to open one, and whoever asks is told so at once: nobody waits for a server
that was just found to be away.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict

from kimi_serve.gateway.tenants.errors import AwayError, TenantsError

SCHEMES: Final = ("postgresql://", "postgres://")
Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Rows = list[tuple[Any, ...]]
T = TypeVar("T")

logger = logging.getLogger(__name__)


class Postgres:
    """`prepare` is given each new connection before anyone else: it makes or checks the tables.

    `async with Postgres(url, prepare, timeout=1.0) as server: rows = await server.rows(statement, values)`
    """

    def __init__(
        self, url: str, prepare: Callable[[Connection], Awaitable[None]], *, timeout: float, retry: float = 1.0
    ) -> None:
        self._url, self._where = url, _place(url)
        self._prepare, self._timeout, self._retry = prepare, timeout, retry
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        self._reason = ""  # why there is none
        self._opening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Opens, also where the server is away: then it goes on trying. Raises TenantsError where it refuses."""
        try:
            await self._open()
        except AwayError as error:
            self._lose(error)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        async with self._turn:
            if self._connection is not None:
                await self._connection.close()

    @property
    def is_away(self) -> bool:
        return self._connection is None

    async def rows(self, statement: str, values: Mapping[str, object]) -> Rows:
        """One statement, in a transaction of its own. Raises AwayError, within the timeout once its turn has come."""
        async with self._turn:
            connection = self._connection
            if connection is None:
                raise AwayError(self._reason)
            try:
                return await self._limited(_fetched(connection, statement, values), connection)
            except psycopg.Error as error:
                if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
                    # The server is there and says no: that is no reason to open another connection.
                    raise TenantsError(f"{self._where}: {error.diag.message_primary}") from None
                away = AwayError(f"{self._where}: {_said(error)}")
                await connection.close()
                self._lose(away)
                raise away from None

    def _lose(self, reason: AwayError) -> None:
        if self._opening is None:
            logger.warning("the store of keys is away", extra={"reason": str(reason)})
            self._connection, self._reason = None, str(reason)
            self._opening = asyncio.create_task(self._open_again())

    async def _open_again(self) -> None:
        while True:
            await asyncio.sleep(self._retry)
            try:
                await self._open()
            except TenantsError as error:  # by now also a refusal may pass: a server that starts refuses
                logger.debug("the store of keys is still away", extra={"reason": str(error)})
            else:
                logger.info("the store of keys answers again")
                self._opening = None
                return

    async def _open(self) -> None:
        try:
            connect = psycopg.AsyncConnection.connect(
                self._url, autocommit=True, connect_timeout=max(2, round(self._timeout))
            )
            async with asyncio.timeout(self._timeout):
                connection: Connection = await connect
        except (psycopg.Error, OSError) as error:  # TimeoutError is an OSError
            raise AwayError(f"{self._where}: {_said(error)}") from None
        try:
            await self._limited(self._prepare(connection), connection)
        except BaseException as error:
            await connection.close()
            if isinstance(error, psycopg.Error):
                told = error.diag.message_primary or _said(error)
                is_away = isinstance(error, psycopg.OperationalError)
                raise (AwayError if is_away else TenantsError)(f"{self._where}: {told}") from None
            raise
        self._connection = connection

    async def _limited(self, work: Awaitable[T], connection: Connection) -> T:
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait([task], timeout=self._timeout)
        except BaseException:
            await _hang_up(connection, task)
            raise
        if not done:
            await _hang_up(connection, task)
            raise psycopg.OperationalError(f"no answer within {self._timeout:g} seconds")
        return task.result()


async def _fetched(connection: Connection, statement: str, values: Mapping[str, object]) -> Rows:
    cursor = await connection.execute(statement, values)
    return await cursor.fetchall() if cursor.description else []


async def _hang_up(connection: Connection, task: asyncio.Future[T]) -> None:
    """Ends a statement at once. psycopg would ask the server to cancel it, and a server that hangs does not answer."""
    if not connection.closed:
        with socket.socket(fileno=os.dup(connection.fileno())) as same, suppress(OSError):
            same.shutdown(socket.SHUT_RDWR)
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # that it was cut off is known


def _place(url: str) -> str:
    """Host and port, for errors; a URL may hold a password."""
    try:
        found = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # Not chained: libpq repeats the piece that it does not understand.
        raise TenantsError("the URL of PostgreSQL is not postgresql://user:password@host:port/database") from None
    return f"PostgreSQL at {found.get('host', 'its socket')}:{found.get('port', 5432)}"


def _said(error: Exception) -> str:
    """The first line of what libpq says of a connection, which names host, user and database; never a password."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
