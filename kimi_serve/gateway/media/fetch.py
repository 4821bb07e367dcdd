"""Remote media, fetched by the gateway alone. Knows the rules and the network; does not look at the bytes.

Every name is resolved here, every address of the answer is checked, and the connection goes to one of those checked:
a second answer of the same name server is never asked for. A redirect starts again from the beginning.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from types import TracebackType
from typing import Final, Protocol, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from kimi_serve.gateway.media.addresses import Address, Network, refusal
from kimi_serve.gateway.media.targets import Target, follow, invalid, parse
from kimi_serve.protocol.errors import ApiError

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "kimi-serve"}


@dataclass(frozen=True, slots=True)
class FetchRules:
    schemes: frozenset[str] = frozenset({"https", "http"})
    ports: frozenset[int] = frozenset({80, 443})
    allowed_domains: tuple[str, ...] = ()  # a domain holds its subdomains; empty: every domain
    denied_domains: tuple[str, ...] = ()  # wins over allowed_domains
    allow_private: tuple[Network, ...] = ()  # networks that may be reached although they are not public
    max_bytes: int = 20 * 2**20
    max_redirects: int = 3
    max_concurrent: int = 32  # fetches of this process; more wait, within their timeout
    timeout_s: float = 10.0  # of one fetch, with its redirects
    connect_timeout_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What differs between kinds of media; None: as the rules say."""

    accept: str = "image/*"
    max_bytes: int | None = None
    timeout_s: float | None = None


PICTURE: Final = Wanted()


class Resolver(Protocol):
    """Turns a name into addresses; OSError where it cannot."""

    async def __call__(self, host: str, port: int) -> list[Address]: ...


async def system_resolver(host: str, port: int) -> list[Address]:
    """Ask the operating system."""
    answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(sockaddr[0]) for _, _, _, _, sockaddr in answers]


@dataclass(slots=True)
class _Flight:
    """A fetch under way, and how many wait for it."""

    task: asyncio.Task[bytes]
    waiters: int = 0


class Fetcher:
    """One HTTP session that carries no cookies, no credentials and no proxy; identical URLs are fetched once."""

    def __init__(self, rules: FetchRules, resolver: Resolver = system_resolver) -> None:
        self._rules = rules
        self._gate = _Gate(rules, resolver)
        self._slots = asyncio.Semaphore(rules.max_concurrent)
        self._flights: dict[tuple[str, Wanted], _Flight] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            resolver=self._gate,
            use_dns_cache=False,
            force_close=True,
            limit=0,  # the slots limit
            socket_factory=self._gate.open_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._rules.connect_timeout_s),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        assert self._session is not None
        await self._session.close()
        self._session = None

    async def fetch(self, url: str, wanted: Wanted = PICTURE) -> bytes:
        """Return the bytes behind a URL. ApiError: invalid_media_url, media_url_forbidden, media_fetch_failed,
        media_fetch_timeout, image_too_large."""
        key = url, wanted
        flight = self._flights.get(key)
        if flight is None or flight.task.done():
            flight = _Flight(asyncio.create_task(self._fetch(url, wanted)))
            self._flights[key] = flight
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0:
                await self._land(key, flight)

    async def _land(self, key: tuple[str, Wanted], flight: _Flight) -> None:
        """Nobody waits any more: forget the fetch, and end it where it still runs."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.done():
            flight.task.cancel()
            await asyncio.wait([flight.task])

    async def _fetch(self, url: str, wanted: Wanted) -> bytes:
        target = self._permitted(parse(url))
        origin = target.origin
        timeout_s = wanted.timeout_s or self._rules.timeout_s
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                return await self._follow(target, wanted)
        except TimeoutError:
            raise ApiError(
                "media_fetch_timeout",
                f"media URL: {origin} did not deliver in time: {self._rules.connect_timeout_s:g} s to connect, "
                f"{timeout_s:g} s in all",
            ) from None
        except (aiohttp.ClientError, OSError, ValueError):  # their texts can hold the URL: leave them out
            raise _failed(origin, "could not be reached, or broke off its answer") from None

    async def _follow(self, target: Target, wanted: Wanted) -> bytes:
        origin = target.origin
        for _ in range(self._rules.max_redirects + 1):
            found = await self._request(target, wanted)
            if isinstance(found, bytes):
                return found
            target = self._permitted(follow(target, found))
        raise _failed(origin, f"redirected more than {self._rules.max_redirects} times")

    async def _request(self, target: Target, wanted: Wanted) -> bytes | str:
        """Return the body, or where a redirect leads."""
        assert self._session is not None
        url = URL(target.url, encoded=True)
        async with self._session.get(url, allow_redirects=False, headers={"Accept": wanted.accept}) as response:
            if response.status in _REDIRECTS:
                if "Location" not in response.headers:
                    raise _failed(target.origin, "redirected to nowhere")
                return response.headers["Location"]
            if response.status != 200:
                raise _failed(target.origin, f"answered with status {response.status}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _failed(target.origin, "compressed its answer, which was not asked for")
            return await self._body(response, wanted.max_bytes or self._rules.max_bytes)

    async def _body(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        body = bytearray()
        if (response.content_length or 0) <= limit:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        response.close()
        raise ApiError("image_too_large", f"media URL: the answer exceeds the limit of {limit} bytes")

    def _permitted(self, target: Target) -> Target:
        """Check all that can be said without asking a name server."""
        rules = self._rules
        if target.scheme not in rules.schemes:
            raise invalid(f"its scheme is not supported; use {' or '.join(sorted(rules.schemes))}")
        if target.port not in rules.ports:
            raise invalid(f"its port is not allowed; use {' or '.join(map(str, sorted(rules.ports)))}")
        if any(_is_in(target.host, domain) for domain in rules.denied_domains):
            raise _forbidden("its domain is denied here")
        if rules.allowed_domains and not any(_is_in(target.host, domain) for domain in rules.allowed_domains):
            raise _forbidden("its domain is not among those allowed here")
        if target.address is not None:
            self._gate.check(target.address)
        return target


class _Gate(AbstractResolver):
    """Where aiohttp gets addresses and sockets from: nothing passes that the rules refuse."""

    def __init__(self, rules: FetchRules, resolver: Resolver) -> None:
        self._rules, self._resolver = rules, resolver

    def check(self, address: Address) -> None:
        what = refusal(address)
        if what is not None and not any(address in network for network in self._rules.allow_private):
            raise _forbidden(f"it leads to an address that is not public ({what})")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = await self._resolver(host, port)
        for address in addresses:  # one bad address spoils the answer: no honest name has both
            self.check(address)
        return [_resolved(host, port, address) for address in addresses]

    def open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Make the socket that connects: the last look at where it goes, however aiohttp came by the address."""
        family, kind, protocol, _, sockaddr = info
        self.check(ip_address(sockaddr[0]))
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        """Nothing is held."""


def _resolved(host: str, port: int, address: Address) -> ResolveResult:
    return {
        "hostname": host,  # the name stays: Host and SNI are made from it
        "host": str(address),
        "port": port,
        "family": socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6,
        "proto": socket.IPPROTO_TCP,
        "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    }


def _is_in(host: str, domain: str) -> bool:
    domain = domain.lower().strip(".")
    return host == domain or host.endswith(f".{domain}")


def _forbidden(what: str) -> ApiError:
    return ApiError("media_url_forbidden", f"media URL: {what}")


def _failed(origin: str, what: str) -> ApiError:
    return ApiError("media_fetch_failed", f"media URL: {origin} {what}")
