"""Fetching over real sockets, from a server that misbehaves as a test says."""

import asyncio
import gzip
import time

import pytest

from kimi_serve.gateway.media.fetch import Fetcher, FetchRules
from kimi_serve.protocol.errors import ApiError
from tests.gateway.media.origin import Answer, Names, Origin, ok, raw, redirect, serve, trickle

HEAD = b"HTTP/1.1 200 OK\r\n"


def fetched(
    answers: dict[str, Answer] | Answer,
    *,
    path: str = "/",
    host: str = "127.0.0.1",
    names: Names | None = None,
    **rules: object,
) -> tuple[bytes | ApiError, Origin]:
    """Fetch one URL: the bytes, or the refusal."""

    async def run() -> tuple[bytes | ApiError, Origin]:
        async with serve(answers) as origin, Fetcher(origin.rules(**rules), names or Names([["127.0.0.1"]])) as fetcher:
            try:
                return await fetcher.fetch(origin.url(path, host)), origin
            except ApiError as error:
                return error, origin

    return asyncio.run(run())


def code(found: bytes | ApiError) -> str:
    assert isinstance(found, ApiError), found
    return found.code


async def forever(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"\r\n")
    while True:
        writer.write(bytes(65536))
        await writer.drain()


async def silent(_: str, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    for _ in range(1000):
        await asyncio.sleep(0.02)
        writer.write(b"X-Slow: 1\r\n")
        await writer.drain()


def test_the_body_is_returned_and_the_request_carries_nothing_of_ours() -> None:
    found, origin = fetched(ok(b"picture"), path="/a.png?b=c", host="pictures.example")
    assert found == b"picture"
    head = origin.requests[0]
    assert head.startswith("GET /a.png?b=c HTTP/1.1\r\n")
    assert f"Host: pictures.example:{origin.port}\r\n" in head
    assert "accept-encoding: identity" in head.lower()
    assert not any(word in head.lower() for word in ("cookie", "authorization", "referer"))


def test_a_name_that_resolves_to_a_private_address_is_forbidden() -> None:
    found, origin = fetched(ok(), host="pictures.example", allow_private=())
    assert code(found) == "media_url_forbidden"
    assert origin.connections == 0


def test_one_private_address_among_public_ones_is_forbidden() -> None:
    found, origin = fetched(ok(), host="pictures.example", names=Names([["93.184.215.14", "10.0.0.1"]]))
    assert code(found) == "media_url_forbidden"
    assert origin.connections == 0


def test_a_name_is_resolved_once_and_the_checked_address_is_connected() -> None:
    """DNS rebinding: the second answer, which would be forbidden, is never asked for."""
    names = Names([["127.0.0.1"], ["169.254.169.254"]])
    found, _ = fetched(ok(), host="pictures.example", names=names)
    assert found == b"picture"
    assert names.asked == 1


def test_a_name_is_resolved_and_checked_again_after_a_redirect() -> None:
    names = Names([["127.0.0.1"], ["169.254.169.254"]])
    found, origin = fetched({"/": redirect("/b"), "/b": ok()}, host="pictures.example", names=names)
    assert code(found) == "media_url_forbidden"
    assert (names.asked, origin.connections) == (2, 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed_relative_to_where_they_stand(status: int) -> None:
    answers = {"/a/b": redirect("../c?d=e", status), "/c": ok(b"there")}
    found, origin = fetched(answers, path="/a/b")
    assert found == b"there"
    assert origin.requests[1].startswith("GET /c?d=e ")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://10.0.0.1:{port}/", "media_url_forbidden"),
        ("http://169.254.169.254:{port}/latest/meta-data", "media_url_forbidden"),
        ("http://[::1]:{port}/", "media_url_forbidden"),
        ("//192.168.1.1:{port}/", "media_url_forbidden"),
        ("http://2130706433:{port}/", "invalid_media_url"),
        ("http://user:pass@127.0.0.1:{port}/", "invalid_media_url"),
        ("http://127.0.0.1:22/", "invalid_media_url"),
        ("file:///etc/passwd", "invalid_media_url"),
        ("data:image/png;base64,AAAA", "invalid_media_url"),
        ("http://[::1", "invalid_media_url"),
    ],
)
def test_a_redirect_is_checked_like_a_first_url(location: str, expected: str) -> None:
    async def run() -> tuple[str, int]:
        answers: dict[str, Answer] = {}
        async with serve(answers) as origin, Fetcher(origin.rules()) as fetcher:
            answers["/"] = redirect(location.format(port=origin.port))
            with pytest.raises(ApiError) as caught:
                await fetcher.fetch(origin.url())
            return caught.value.code, origin.connections

    assert asyncio.run(run()) == (expected, 1)


def test_a_redirect_loop_ends() -> None:
    found, origin = fetched(redirect("/again"), max_redirects=3)
    assert code(found) == "media_fetch_failed"
    assert origin.connections == 4


def test_a_redirect_to_nowhere_fails() -> None:
    assert code(fetched(raw(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"))[0]) == "media_fetch_failed"


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 100\r\n\r\nshort",
        HEAD + b"Content-Length: -5\r\n\r\nbody",
        HEAD + b"Content-Length: many\r\n\r\nbody",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nbody\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nbo",
        HEAD + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
    ids=range(12),
)
def test_a_broken_or_failing_answer_is_a_failed_fetch(answer: bytes) -> None:
    assert code(fetched(raw(answer))[0]) == "media_fetch_failed"


def test_nothing_after_the_content_length_is_taken_for_the_body() -> None:
    found, _ = fetched(raw(HEAD + b"Content-Length: 4\r\n\r\nbody and more"))
    assert found == b"body" or code(found) == "media_fetch_failed"


def test_a_content_length_over_the_limit_is_refused_before_the_body() -> None:
    async def stall(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Content-Length: 1001\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(60)

    assert code(fetched(stall, max_bytes=1000)[0]) == "image_too_large"


@pytest.mark.parametrize(("size", "is_fine"), [(1000, True), (1001, False)])
def test_the_limit_on_bytes_is_exact_without_a_content_length(size: int, is_fine: bool) -> None:
    found, _ = fetched(raw(HEAD + b"\r\n" + bytes(size)), max_bytes=1000)
    assert (found == bytes(size)) if is_fine else (code(found) == "image_too_large")


def test_an_endless_body_is_cut_at_the_limit() -> None:
    found, _ = fetched(forever, max_bytes=1_000_000)
    assert code(found) == "image_too_large"


@pytest.mark.parametrize("answer", [silent, trickle])
def test_a_slow_server_runs_into_the_timeout(answer: Answer) -> None:
    start = time.monotonic()
    assert code(fetched(answer, timeout_s=0.3)[0]) == "media_fetch_timeout"
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x-unknown"])
def test_a_compressed_answer_is_refused_not_inflated(encoding: str) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    found, _ = fetched(ok(bomb, f"Content-Encoding: {encoding}\r\n"))
    assert code(found) == "media_fetch_failed"
    assert "compressed" in str(found)


def test_a_closed_port_is_a_failed_fetch() -> None:
    async def run() -> str:
        async with serve(ok()) as origin:
            rules, url = origin.rules(), origin.url()
        async with Fetcher(rules) as fetcher:
            with pytest.raises(ApiError) as caught:
                await fetcher.fetch(url)
            return caught.value.code

    assert asyncio.run(run()) == "media_fetch_failed"


def test_a_name_that_does_not_resolve_is_a_failed_fetch() -> None:
    async def fails(host: str, port: int) -> list[object]:
        raise OSError("no such name")

    assert code(fetched(ok(), host="pictures.example", names=fails)[0]) == "media_fetch_failed"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rules", "host", "expected"),
    [
        ({"denied_domains": ("example.com",)}, "example.com", "media_url_forbidden"),
        ({"denied_domains": ("example.com",)}, "a.B.Example.com.", "media_url_forbidden"),
        ({"denied_domains": ("example.com",)}, "badexample.com", None),
        ({"denied_domains": (".Example.com",)}, "www.example.com", "media_url_forbidden"),
        ({"allowed_domains": ("example.com",)}, "cdn.example.com", None),
        ({"allowed_domains": ("example.com",)}, "example.com.evil.org", "media_url_forbidden"),
        ({"allowed_domains": ("example.com",)}, "notexample.com", "media_url_forbidden"),
        ({"allowed_domains": ("example.com",)}, "127.0.0.1", "media_url_forbidden"),
        (
            {"allowed_domains": ("example.com",), "denied_domains": ("x.example.com",)},
            "x.example.com",
            "media_url_forbidden",
        ),
        ({"schemes": frozenset({"https"})}, "example.com", "invalid_media_url"),
        ({"ports": frozenset({443})}, "example.com", "invalid_media_url"),
    ],
)
def test_domains_schemes_and_ports_follow_the_rules(rules: dict[str, object], host: str, expected: str | None) -> None:
    found, origin = fetched(ok(), host=host, **rules)
    if expected is None:
        assert found == b"picture"
    else:
        assert code(found) == expected
        assert origin.connections == 0


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert fetched(ok())[0] == b"picture"


def test_a_cookie_that_a_server_sets_does_not_come_back() -> None:
    _, origin = fetched({"/": raw(b"HTTP/1.1 302 Found\r\nSet-Cookie: a=b\r\nLocation: /b\r\n\r\n"), "/b": ok()})
    assert len(origin.requests) == 2
    assert "cookie" not in origin.requests[1].lower()


@pytest.mark.parametrize(
    "answers",
    [raw(b""), raw(b"HTTP/1.1 403 No\r\n\r\n"), raw(HEAD + b"Content-Length: 9\r\n\r\n"), redirect("/?again=hunter2")],
)
def test_no_error_shows_the_path_or_the_query(answers: Answer) -> None:
    found, _ = fetched(answers, path="/private-path?token=hunter2")
    assert isinstance(found, ApiError)
    assert "127.0.0.1" in found.message
    assert not any(secret in found.message for secret in ("hunter2", "private-path", "token"))


def test_the_socket_itself_refuses_an_address_that_passed_every_other_check() -> None:
    """The last gate: aiohttp is asked for a loopback address directly, past the resolver."""

    async def run() -> int:
        async with serve(ok()) as origin, Fetcher(FetchRules()) as fetcher:
            assert fetcher._session is not None
            with pytest.raises(ApiError) as caught:
                await fetcher._session.get(origin.url())
            assert caught.value.code == "media_url_forbidden"
            return origin.connections

    assert asyncio.run(run()) == 0
