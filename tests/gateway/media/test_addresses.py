"""Which addresses are public, and which spellings of a host are plain."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.gateway.media.addresses import literal, refusal

REFUSED = {
    "unspecified": ["0.0.0.0", "::"],
    "this network": ["0.1.2.3"],
    "private": ["10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1"],
    "carrier-grade NAT": ["100.64.0.0", "100.127.255.255"],
    "loopback": ["127.0.0.1", "127.255.255.255", "::1"],
    "link-local": ["169.254.0.1", "fe80::1", "febf::1"],
    "cloud metadata": ["169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarking": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1"],
    "broadcast": ["255.255.255.255"],
    "reserved": ["192.0.0.1", "240.0.0.1", "255.255.255.254", "2001:20::1", "4000::1", "1::1", "5f00::1"],
    "6to4 relay": ["192.88.99.1"],
    "IPv4-compatible": ["::127.0.0.1", "::8.8.8.8"],
    "6to4": ["2002:7f00:1::", "2002:808:808::1"],
    "Teredo": ["2001::1"],
    "local NAT64": ["64:ff9b:1::1"],
    "unique local": ["fc00::1", "fdff::1"],
    "site-local": ["fec0::1"],
    "discard": ["100::1"],
    "scoped": ["fe80::1%lo", "2606:4700::1%1"],
    "loopback inside IPv6": ["::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "::ffff:0:127.0.0.1", "2606:4700::5efe:7f00:1"],
    "private inside IPv6": ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2606:4700::200:5efe:a00:1"],
    "cloud metadata inside IPv6": ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"],
}
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:800::200e",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2620:4f::1",
]


@pytest.mark.parametrize(("what", "text"), [(what, text) for what, texts in REFUSED.items() for text in texts])
def test_an_address_that_is_not_public_is_refused_by_name(what: str, text: str) -> None:
    assert refusal(ip_address(text)) == what


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_not_refused(text: str) -> None:
    assert refusal(ip_address(text)) is None


@given(st.integers(0, 2**32 - 1))
def test_no_ipv4_address_passes_that_the_standard_library_calls_not_global(number: int) -> None:
    address = IPv4Address(number)
    assert refusal(address) is not None or (address.is_global and not address.is_multicast)


@given(st.integers(0, 2**128 - 1) | st.integers(0x2000, 0x3FFF).map(lambda top: top << 112 | 1))
def test_no_ipv6_address_passes_that_is_outside_global_unicast_unless_it_wraps_a_public_one(number: int) -> None:
    address = IPv6Address(number)
    if refusal(address) is None and not address.is_global:
        assert refusal(IPv4Address(number & 0xFFFFFFFF)) is None
        assert address.ipv4_mapped or number >> 32 in (0x64FF9B << 64, 0xFFFF << 16)


@pytest.mark.parametrize("text", ["8.8.8.8", "127.0.0.1", "255.255.255.255"])
def test_a_plain_ipv4_host_is_read(text: str) -> None:
    assert literal(text) == IPv4Address(text)


@pytest.mark.parametrize("text", ["::1", "2606:4700::1", "::ffff:1.2.3.4"])
def test_a_plain_ipv6_host_is_read(text: str) -> None:
    assert literal(f"[{text}]") == IPv6Address(text)


@pytest.mark.parametrize("host", ["example.com", "1.example.com", "0x7f.com", "a1", "xn--fiqs8s", "1-2", "x.0xg"])
def test_a_name_is_no_address(host: str) -> None:
    assert literal(host) is None


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "127.0.1",
        "1",
        "0",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.01",
        "0x7f.0.0.1",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.4.",
        "a.1",
        "0x",
        "a.0x",
        "example.com.127",
        "[::1",
        "[::1%lo]",
        "[1.2.3.4]",
        "[]",
        "[::1::2]",
        "[g::]",
    ],
)
def test_any_other_spelling_of_an_address_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="is not a plain IPv"):
        literal(host)
