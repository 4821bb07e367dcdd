"""Which addresses a fetch may reach. Knows addresses and how hosts spell them; resolves no name, opens no socket."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Most telling name first: an address is refused under the first network that holds it.
_V4: Final[tuple[tuple[str, str], ...]] = (
    ("169.254.169.254/32", "cloud metadata"),
    ("169.254.170.2/32", "cloud metadata"),
    ("100.100.100.200/32", "cloud metadata"),
    ("168.63.129.16/32", "cloud metadata"),  # Azure's, in the midst of public addresses
    ("192.0.0.192/32", "cloud metadata"),
    ("0.0.0.0/32", "unspecified"),
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.0.2.0/24", "documentation"),
    ("192.31.196.0/24", "reserved"),
    ("192.52.193.0/24", "reserved"),
    ("192.88.99.0/24", "6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("192.175.48.0/24", "reserved"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("240.0.0.0/4", "reserved"),
)
_V6: Final[tuple[tuple[str, str], ...]] = (
    ("fd00:ec2::254/128", "cloud metadata"),
    ("fd20:ce::254/128", "cloud metadata"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::/96", "IPv4-compatible"),
    ("64:ff9b:1::/48", "local NAT64"),
    ("100::/64", "discard"),
    ("2001::/32", "Teredo"),
    ("2001:2::/48", "benchmarking"),
    ("2001:db8::/32", "documentation"),
    ("2001::/23", "reserved"),
    ("2002::/16", "6to4"),
    ("3fff::/20", "documentation"),
    ("fc00::/7", "unique local"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
)
_V4_NETWORKS: Final = tuple((IPv4Network(text), name) for text, name in _V4)
_V6_NETWORKS: Final = tuple((IPv6Network(text), name) for text, name in _V6)

_GLOBAL: Final = IPv6Network("2000::/3")
# IPv4 in other words, translated on the way: IPv4-mapped, IPv4-translated, NAT64. As public as what they hold.
_WRAPPED: Final = (IPv6Network("::ffff:0:0/96"), IPv6Network("::ffff:0:0:0/96"), IPv6Network("64:ff9b::/96"))
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})

# A host whose last label is a number is an IPv4 address to C libraries: 127.1, 0177.0.0.1, 0x7f000001, 2130706433.
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")


def refusal(address: Address) -> str | None:
    """Say what an address is that a fetch must not reach; None for a public one."""
    if isinstance(address, IPv4Address):
        return next((name for network, name in _V4_NETWORKS if address in network), None)
    if address.scope_id is not None:
        return "scoped"
    name = next((name for network, name in _V6_NETWORKS if address in network), None)
    if name is not None:
        return name
    is_wrapped = any(address in network for network in _WRAPPED)
    if is_wrapped or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        inner = refusal(IPv4Address(int(address) & 0xFFFF_FFFF))
        if inner is not None:
            return f"{inner} inside IPv6"
    return None if is_wrapped or address in _GLOBAL else "reserved"


def literal(host: str) -> Address | None:
    """Return the address that a URL's host spells, None for a name. ValueError for any spelling but the plain one."""
    if host.startswith("["):
        if "%" in host or not host.endswith("]"):
            raise ValueError("is not a plain IPv6 address")
        try:
            return IPv6Address(host[1:-1])
        except AddressValueError:
            raise ValueError("is not a plain IPv6 address") from None
    if _NUMERIC.fullmatch(host) is None:
        return None
    try:
        return IPv4Address(host)
    except AddressValueError:
        raise ValueError("is not a plain IPv4 address of four decimal numbers") from None
