"""What is not a decent request: refused by name, its connection closed, nothing kept, and no engine asked."""

import json
import socket

import pytest

from kimi_serve.testing.fake_engine import FakeEngine
from tests.gateway.faults.clients import connect, head, read_answer, read_answers, read_to_end, read_until, request
from tests.gateway.faults.conftest import Door

CHUNKED = "transfer-encoding: chunked"
NOT_HTTP = {
    "rubbish": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n",
    "no version": b"GET /livez\r\n\r\n",
    "a version of the future": b"GET /livez HTTP/9.9\r\nhost: x\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nhost: x\r\n\r\n",
    "a bare path": b"GET livez HTTP/1.1\r\nhost: x\r\n\r\n",
    "a header without a name": head(": x"),
    "a header with a space in its name": head("a b: x"),
    "a line folded into the next": head("a: b", " c"),
    "a zero byte": head("a: \x00b"),
    "two lengths": head("content-length: 5", "content-length: 6") + b"12345",
    "a length and chunks": head("content-length: 5", CHUNKED) + b"0\r\n\r\n",
    "a negative length": head("content-length: -5"),
    "a length that is no number": head("content-length: five"),
    "a length of thirty digits": head(f"content-length: {'9' * 30}"),
    "a chunk of no size": head(CHUNKED) + b"zz\r\nhello\r\n0\r\n\r\n",
    "a chunk of a negative size": head(CHUNKED) + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than it says": head(CHUNKED) + b"3\r\nhello\r\n0\r\n\r\n",
    "a chunk of 2^68 bytes": head(CHUNKED) + b"fffffffffffffffff\r\nhello",
    "an unknown coding": head("transfer-encoding: chunked, gzip") + b"0\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_not_http_is_refused_and_its_connection_closed(door: Door, fake: FakeEngine, sent: bytes) -> None:
    with connect(door.port) as client:
        client.sendall(sent)
        answer = read_answer(client)
        assert (answer.status, answer.code) == (400, "invalid_http")
        assert answer.headers["connection"] == "close"
        assert read_to_end(client) == b""
    assert fake.record.count == 0


def test_rubbish_behind_a_request_ends_the_stream_and_puts_nothing_into_it(door: Door, fake: FakeEngine) -> None:
    fake.dials = fake.dials.turned({"itl_s": 0.05, "tokens": 1000})
    with connect(door.port) as client:
        client.sendall(request(stream=True))
        begun = read_until(client, b'"content"')
        client.sendall(b"rubbish\r\n\r\n")
        stream = begun + read_to_end(client)
    assert stream.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("host", ["elsewhere.example:99", "[::1", "%%%", "a" * 2000, "127.0.0.1@evil"])
def test_any_one_host_is_served_and_never_looked_at(door: Door, host: str) -> None:
    with connect(door.port) as client:
        client.sendall(request(host=host))
        assert read_answer(client).status == 200
    with connect(door.port) as client:
        client.sendall(request(path="/nowhere", host=host))
        assert read_answer(client).code == "not_found"


@pytest.mark.parametrize(
    "sent",
    [
        head(*(f"a{number}: b" for number in range(20_000))),
        head(f"a: {'b' * 1_000_000}"),
        head(path="/" + "a" * 1_000_000),
        b"GET /" + b"a" * 1_000_000,
        head(*("a: b" for _ in range(500))),  # few bytes, and five hundred entries for everyone who looks for one
    ],
    ids=["many", "long", "long URL", "a URL without end", "five hundred"],
)
def test_a_header_bomb_is_refused_by_its_limit(door: Door, fake: FakeEngine, sent: bytes) -> None:
    with connect(door.port) as client:
        client.sendall(sent[:300_000])
        answer = read_answer(client)
        assert (answer.status, answer.code) == (431, "header_too_large")
        assert "16384" in json.loads(answer.body)["error"]["message"]
    assert fake.record.count == 0


@pytest.mark.parametrize("end", [b"0\r\nx: " + b"y" * 300_000, b"0\r\n" + b"x: y\r\n" * 50_000, b"1;" + b"x" * 300_000])
def test_what_follows_a_body_is_bounded_too(door: Door, fake: FakeEngine, end: bytes) -> None:
    before = door.resident_bytes()
    with connect(door.port) as client:
        client.sendall(head(CHUNKED) + b"5\r\n12345\r\n" + end)
        assert read_answer(client).status in (400, 431)
        read_to_end(client)
    assert door.resident_bytes() - before < 16 << 20
    assert fake.record.count == 0


def test_pipelined_requests_are_answered_in_their_order(door: Door, fake: FakeEngine) -> None:
    with connect(door.port) as client:
        client.sendall(request(max_tokens=1) + head(method="GET", path="/livez") + request(max_tokens=3))
        (first, second, third), rest = read_answers(client, 3)
    assert rest == b""
    assert json.loads(second.body) == {"status": "alive"}
    assert [json.loads(one.body)["usage"]["completion_tokens"] for one in (first, third)] == [1, 3]
    assert fake.record.count == 2


def test_a_client_that_half_closes_is_taken_to_have_left(door: Door, fake: FakeEngine) -> None:
    fake.dials = fake.dials.turned({"ttft_s": 60.0})
    left = door.metric("clients_left_total")
    with connect(door.port) as client:
        client.sendall(request())
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b""
    door.assert_idle()
    assert door.metric("clients_left_total") == left + 1


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_an_offer_of_another_protocol_is_not_taken(door: Door, protocol: str) -> None:
    """Java's client offers h2c with every request."""
    with connect(door.port) as client:
        client.sendall(request(lines=("connection: upgrade", f"upgrade: {protocol}")))
        assert read_answer(client).status == 200


def test_a_client_of_http_1_0_is_served_and_its_connection_closed(door: Door) -> None:
    with connect(door.port) as client:
        client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert read_to_end(client).endswith(b'{"status":"alive"}')
