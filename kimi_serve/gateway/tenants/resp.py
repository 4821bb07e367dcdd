"""Redis over one connection, as much of it as running scripts needs. Knows RESP2; knows no command's meaning.

Calls are pipelined: each is written at once, and answers come in order. A call that takes too long closes the
connection, since nothing behind it would be faster; the next call opens another.
"""

import asyncio
import ssl
from collections import deque
from typing import Self
from urllib.parse import unquote, urlsplit

Words = tuple[str | int | float, ...]
Reply = str | int | None | list["Reply"]


class RedisError(Exception):
    """What Redis answered instead of a result, or why it did not answer."""


class Redis:
    def __init__(
        self,
        host: str,
        port: int = 6379,
        *,
        username: str = "default",
        password: str | None = None,
        database: int = 0,
        tls: ssl.SSLContext | None = None,
        timeout: float = 0.2,  # seconds of one call, connecting included
    ) -> None:
        self._host, self._port, self._tls, self._timeout = host, port, tls, timeout
        self._greeting: list[Words] = [("AUTH", username, password)] if password else []
        self._greeting += [("SELECT", database)] if database else []
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()

    @classmethod
    def from_url(cls, url: str, timeout: float = 0.2) -> Self:
        """redis://[[user]:password@]host[:port][/database]; rediss:// for TLS."""
        parts = urlsplit(url)
        database = parts.path.strip("/") or "0"
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or not database.isdigit():
            raise RedisError("the URL of Redis is not redis://[[user]:password@]host[:port][/database]")
        return cls(
            parts.hostname,
            parts.port or 6379,
            username=unquote(parts.username or "default"),
            password=unquote(parts.password or "") or None,
            database=int(database),
            tls=ssl.create_default_context() if parts.scheme == "rediss" else None,
            timeout=timeout,
        )

    async def call(self, *words: str | int | float) -> Reply:
        """Raises RedisError, within the timeout."""
        connection = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._connected()
                return await connection.call(words)
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            if connection is not None:
                connection.close()
            raise RedisError(f"{self._host}:{self._port}: {type(error).__name__}") from error

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.aclose()

    async def _connected(self) -> "_Connection":
        async with self._opening:
            if self._connection is None or self._connection.is_closed:
                reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
                connection = _Connection(reader, writer)
                try:
                    for words in self._greeting:
                        await connection.call(words)
                except BaseException:
                    connection.close()
                    raise
                self._connection = connection
            return self._connection


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._waiting: deque[asyncio.Future[Reply | RedisError]] = deque()
        self.is_closed = False
        self._reading = asyncio.create_task(self._read(reader))

    async def call(self, words: Words) -> Reply:
        if self.is_closed:
            raise EOFError
        answer: asyncio.Future[Reply | RedisError] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._writer.write(_encoded(words))
        await self._writer.drain()
        reply = await answer
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def close(self) -> None:
        self.is_closed = True
        self._reading.cancel()
        self._writer.transport.abort()
        while self._waiting:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(RedisError("the connection was closed"))

    async def aclose(self) -> None:
        self.close()
        await asyncio.wait([self._reading])
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)  # that it broke is known

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                reply = await _reply(reader)
                answer = self._waiting.popleft()
                if not answer.done():  # whoever asked may be gone
                    answer.set_result(reply)
        except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError):
            self.close()  # the last three: what came is not RESP, or nobody asked for it


def _encoded(words: Words) -> bytes:
    parts = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


async def _reply(reader: asyncio.StreamReader) -> Reply | RedisError:
    line = (await reader.readuntil(b"\r\n"))[:-2].decode()
    kind, rest = line[:1], line[1:]
    if kind == "+":
        return rest
    if kind == "-":
        return RedisError(rest)
    if kind == ":":
        return int(rest)
    if kind == "$":
        return None if rest == "-1" else (await reader.readexactly(int(rest) + 2))[:-2].decode()
    if kind == "*":
        return [item for _ in range(int(rest)) if not isinstance(item := await _reply(reader), RedisError)]
    raise ValueError(kind)
