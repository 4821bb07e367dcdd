"""Which replicas there are."""

import asyncio
import socket

import pytest

from kimi_serve.gateway.replicas import DnsNames, StaticList


def test_a_static_list_is_what_was_listed_without_the_last_slash() -> None:
    listed = StaticList.of(["http://a:8000/", "http://b:8000", "http://a:8000"])
    assert asyncio.run(listed.urls()) == {"http://a:8000", "http://b:8000"}


def test_a_name_is_all_its_addresses_of_both_families() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("engines.svc", 8000)
        return ["10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.1"]

    urls = asyncio.run(DnsNames("engines.svc", 8000, resolve=resolve).urls())
    assert urls == {"http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000"}


def test_the_systems_resolver_is_asked() -> None:
    assert asyncio.run(DnsNames("127.0.0.1", 8000).urls()) == {"http://127.0.0.1:8000"}
    assert "http://127.0.0.1:8000" in asyncio.run(DnsNames("localhost", 8000).urls())


def test_a_resolver_that_hangs_or_fails_is_an_oserror() -> None:
    async def hang(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    async def fail(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    for names in (DnsNames("x", 1, timeout_s=0.01, resolve=hang), DnsNames("x", 1, resolve=fail)):
        with pytest.raises(OSError, match=r".*"):
            asyncio.run(names.urls())
