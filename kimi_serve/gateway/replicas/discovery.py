"""Which replicas there are. Knows lists and names; never how a replica is.

Kubernetes needs nothing of its own: the name of a headless service resolves to the addresses of its pods.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Discovery(Protocol):
    async def urls(self) -> frozenset[str]:
        """Base URLs without a slash at the end. Raises OSError when it cannot be told; what was known then stays."""
        ...


@dataclass(frozen=True, slots=True)
class StaticList:
    listed: frozenset[str]

    @classmethod
    def of(cls, urls: Iterable[str]) -> "StaticList":
        return cls(frozenset(url.rstrip("/") for url in urls))

    async def urls(self) -> frozenset[str]:
        return self.listed


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True, slots=True)
class DnsNames:
    """All A and AAAA records of a name, asked for anew each time. Plain http: a certificate would name no address."""

    host: str
    port: int
    timeout_s: float = 5.0
    resolve: Resolve = _resolve

    async def urls(self) -> frozenset[str]:
        addresses = await asyncio.wait_for(self.resolve(self.host, self.port), self.timeout_s)
        return frozenset(f"http://{_bracketed(address)}:{self.port}" for address in addresses)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
