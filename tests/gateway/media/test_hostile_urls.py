"""URLs made to reach what they must not: none of them reaches a server that listens on this machine."""

import asyncio

import pytest

from kimi_serve.gateway.media.fetch import Fetcher, FetchRules
from kimi_serve.protocol.errors import ApiError
from tests.gateway.media.origin import ok, serve

# {port} is the port of the server that must not be reached; its rules allow that port.
HOSTS = """
127.0.0.1 127.0.0.2 127.255.255.254 127.1 127.0.1 127.0.0.1. 0.0.0.0 0 00 0x0 0x7f000001 0x7F.0.0.1 0x7f.1 2130706433
017700000001 0177.0.0.1 0177.0.0.01 127.0.0.0x1 0x7f.0x0.0x0.0x1 127.00.0.1 127.0.0.001 00127.0.0.1 4294967295
4294967296 256.256.256.256 1.2.3.4.5 127.0.0.1.1 10.0.0.1 172.16.0.1 172.31.255.255 192.168.0.1 169.254.169.254
169.254.170.2 100.64.0.1 100.100.100.200 168.63.129.16 192.0.0.192 198.18.0.1 224.0.0.1 240.0.0.1 255.255.255.255
2852039166 0xA9FEA9FE 0251.0376.0251.0376
[::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1]
[64:ff9b::169.254.169.254] [64:ff9b:1::7f00:1] [2002:7f00:1::] [2002:a9fe:a9fe::1] [2001:0:7f00:1::] [fe80::1]
[fe80::1%25lo] [fe80::1%lo] [fc00::1] [fd00:ec2::254] [fec0::1] [ff02::1] [2001:db8::1] [100::1] [::1%250]
[2606:4700::5efe:127.0.0.1] [::1 ::1] [127.0.0.1] [] [::ffff:127.1]
localhost LOCALHOST localhost. localhost.localdomain ip6-localhost
１２７.0.0.1 127。0。0。1 ①②⑦.⓪.⓪.① ⅼocalhost loc%61lhost 127.0.0.1%2f 127.0.0.1%00 %31%32%37.0.0.1 127.0.0.1\t
a..b .example.com -a.example.com
""".replace("\n", " ").split(" ")
URLS = [
    "http://user@127.0.0.1:{port}/",
    "http://user:secret@127.0.0.1:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://example.com:{port}@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@example.com/",
    "http://127.0.0.1:{port}?@example.com/",
    "http://127.0.0.1:{port}:80/",
    "http://127.0.0.1:0{port}/",
    "http://127.0.0.1:+{port}/",
    "http://127.0.0.1 :{port}/",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nHost: example.com",
    "http://127.0.0.1:{port}/\n",
    "http://\u0000127.0.0.1:{port}/",
    "HTTP://127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}/",
    "file:///etc/passwd",
    "file://127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET",
    "dict://127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}/",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "jar:http://127.0.0.1:{port}!/",
    "javascript:alert(1)",
    "view-source:http://127.0.0.1:{port}/",
    "url:http://127.0.0.1:{port}/",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:/",
    "http://[::ffff:127.0.0.1]:{port}/\ud800",
    "http://" + "a" * 9000 + ":{port}/",
    "",
]
FORMS = [f"http://{host}:{{port}}/" for host in HOSTS if host] + URLS


def test_the_suite_has_at_least_sixty_forms() -> None:
    assert len(set(FORMS)) >= 60


def test_no_hostile_url_reaches_a_server_on_this_machine() -> None:
    async def run() -> tuple[dict[str, str], int]:
        outcome = {}
        async with serve(ok()) as canary:
            rules = FetchRules(ports=frozenset({canary.port, 80, 443}), timeout_s=2.0, connect_timeout_s=0.5)
            async with Fetcher(rules) as fetcher:
                for form in FORMS:
                    try:
                        await fetcher.fetch(form.replace("{port}", str(canary.port)))
                        outcome[form] = "fetched"
                    except ApiError as error:
                        outcome[form] = error.code
            return outcome, canary.connections

    outcome, connections = asyncio.run(run())
    assert connections == 0
    # Names that this machine does not know fail at its resolver; every other form is refused before a packet leaves.
    unknown = {form for form, code in outcome.items() if code in ("media_fetch_failed", "media_fetch_timeout")}
    assert {code for form, code in outcome.items() if form not in unknown} == {
        "invalid_media_url",
        "media_url_forbidden",
    }
    assert unknown <= {f"http://{name}:{{port}}/" for name in ("localhost.localdomain", "ip6-localhost")}


def test_the_canary_is_reached_where_its_address_is_allowed() -> None:
    async def run() -> tuple[bytes, int]:
        async with serve(ok()) as canary, Fetcher(canary.rules()) as fetcher:
            return await fetcher.fetch(canary.url()), canary.connections

    assert asyncio.run(run()) == (b"picture", 1)


@pytest.mark.parametrize("url", ["http://user:secret@example.com/", "ftp://u:secret@h/", "http://[secret/", "secret"])
def test_no_refusal_repeats_what_it_refuses(url: str) -> None:
    async def run() -> str:
        async with Fetcher(FetchRules()) as fetcher:
            with pytest.raises(ApiError) as caught:
                await fetcher.fetch(url)
            return caught.value.message

    assert "secret" not in asyncio.run(run())
