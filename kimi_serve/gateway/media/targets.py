"""URLs of remote media, taken apart once and strictly. Knows syntax; knows no rule on domains, resolves nothing.

Whoever checks a URL and whoever connects must read the same host from it, so what two readers could read differently
is refused: user names, backslashes, percent signs and Unicode in hosts, numbers that are an address in disguise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urljoin

from kimi_serve.gateway.media.addresses import Address, literal
from kimi_serve.protocol.errors import ApiError

MAX_LENGTH: Final = 8000  # characters: servers take request lines of 8 KiB

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_CONTROL = re.compile(r"[\x00-\x20\x7f\\]")
_SAFE = "!$%&'()*+,-./:;=?@_~[]|^`{}"
_PORTS: Final = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Target:
    """A URL's parts; the host is lower case, without a final dot."""

    scheme: str
    host: str  # a name, an IPv4 address, or an IPv6 address in brackets
    port: int
    path: str  # with the query, percent-encoded
    address: Address | None  # where the host is one

    @property
    def origin(self) -> str:
        """All of the URL that an error may show: a path or a query can hold secrets."""
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}"

    @property
    def url(self) -> str:
        return self.origin + self.path


def parse(url: str) -> Target:
    """Take a URL apart. ApiError: invalid_media_url, without any of the URL's text."""
    if len(url) > MAX_LENGTH:
        raise invalid(f"it is longer than {MAX_LENGTH} characters")
    if _CONTROL.search(url):
        raise invalid("it holds a space, a control character or a backslash; percent-encode it")
    match = _URL.fullmatch(url)
    if match is None:
        raise invalid("expected https://HOST/PATH")
    scheme, authority, path = match[1].lower(), match[2], match[3]
    if scheme not in _PORTS:
        raise invalid("its scheme is not supported; use https or data")
    if "@" in authority:
        raise invalid("it holds a user name or password; remove them")
    host, port = _host_and_port(authority)
    try:
        address = literal(host)
    except ValueError as error:
        raise invalid(f"its host {error}") from None
    if address is None and not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise invalid("its host is no domain name")
    return Target(scheme, host, _PORTS[scheme] if port is None else int(port), _encoded(path), address)


def follow(target: Target, location: str) -> Target:
    """Take apart where a redirect leads."""
    try:
        return parse(urljoin(target.url, location))
    except ValueError:  # urljoin's, on broken brackets
        raise invalid("it redirects to something that is no URL") from None


def invalid(what: str) -> ApiError:
    return ApiError("invalid_media_url", f"media URL: {what}")


def _host_and_port(authority: str) -> tuple[str, str | None]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise invalid("its host is missing or not plain ASCII (write an international name as xn--...)")
    host = match[1].lower().removesuffix(".")
    if not host or len(host) > 253:
        raise invalid("its host is no domain name")
    return host, match[2]


def _encoded(path: str) -> str:
    try:
        encoded = quote(path, safe=_SAFE)
    except UnicodeEncodeError:
        raise invalid("it holds characters that are no text") from None
    return encoded if encoded.startswith("/") else f"/{encoded}"
