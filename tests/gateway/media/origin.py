"""A web server of raw bytes for the fetcher's tests. Knows what it was asked; answers what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network

from kimi_serve.gateway.media.addresses import Address
from kimi_serve.gateway.media.fetch import FetchRules

LOOPBACK = (ip_network("127.0.0.1/32"),)

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Origin:
    port: int = 0
    requests: list[str] = field(default_factory=list)  # whole heads
    connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a client went away in the middle

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def rules(self, **changes: object) -> FetchRules:
        given = {"ports": frozenset({self.port}), "allow_private": LOOPBACK, "timeout_s": 5.0} | changes
        return FetchRules(**given)  # type: ignore[arg-type]


@dataclass
class Names:
    """A resolver that gives prepared answers in turn, the last for ever, and counts the questions."""

    answers: list[list[str]]
    asked: int = 0

    async def __call__(self, host: str, port: int) -> list[Address]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [IPv4Address(text) for text in answer]


def ok(body: bytes = b"picture", headers: str = "") -> Answer:
    return raw(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)


def raw(answer: bytes) -> Answer:
    async def send(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return send


def redirect(location: str, status: int = 302) -> Answer:
    return raw(f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode())


async def trickle(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        await asyncio.sleep(0.02)
        writer.write(b"x")
        await writer.drain()


@asynccontextmanager
async def serve(answers: dict[str, Answer] | Answer) -> AsyncIterator[Origin]:
    """Answer each path by its entry, and close the connection."""
    origin = Origin()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        origin.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            origin.requests.append(head)
            path = head.split(" ")[1]
            answer = answers if callable(answers) else answers[path.partition("?")[0]]
            await answer(head, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            origin.left.set()
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    origin.port = server.sockets[0].getsockname()[1]
    try:
        yield origin
    finally:
        server.close()
