"""Bodies of 2 GiB: refused from their length, or cut at the limit; the gateway's memory does not follow them."""

import json
import socket
import threading

import pytest

from kimi_serve.testing.fake_engine import FakeEngine
from tests.gateway.faults.clients import connect, head, read_answer, read_to_end, request
from tests.gateway.faults.conftest import LIMITS, Door

HUGE = 2 << 30
LIMIT = int(str(LIMITS["body__max_bytes"]))
CHUNK = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"


def pour(client: socket.socket, piece: bytes, total: int) -> int:
    """Sends until the other side has had enough; how many bytes went."""
    sent = 0
    try:
        while sent < total:
            client.sendall(piece)
            sent += len(piece)
    except OSError:
        pass
    return sent


def test_a_length_of_2_gib_is_refused_before_the_body_is_read(door: Door, fake: FakeEngine) -> None:
    with connect(door.port) as client:
        client.sendall(head(f"content-length: {HUGE}", "expect: 100-continue"))
        answer = read_answer(client)
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert str(LIMIT) in json.loads(answer.body)["error"]["message"]
    assert fake.record.count == 0


@pytest.mark.parametrize("framing", [f"content-length: {HUGE}", "transfer-encoding: chunked"])
def test_a_body_of_2_gib_is_cut_and_not_kept(door: Door, fake: FakeEngine, framing: str) -> None:
    before = door.most_resident_bytes()
    with connect(door.port) as client:
        client.sendall(head(framing))
        sent: list[int] = []
        pouring = threading.Thread(target=lambda: sent.append(pour(client, CHUNK, HUGE)))
        pouring.start()
        answer = read_answer(client)  # while the client is still sending
        assert (answer.status, answer.code) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"
        read_to_end(client)
        pouring.join(30)
    print(f"{sent[0] >> 20} MiB went; the gateway grew by {(door.most_resident_bytes() - before) >> 20} MiB")
    assert sent[0] < LIMIT + (64 << 20)
    assert door.most_resident_bytes() - before < 3 * LIMIT
    assert fake.record.count == 0


def test_a_small_body_that_nobody_reads_leaves_the_connection_in_use(door: Door) -> None:
    with connect(door.port) as client:
        client.sendall(request(path="/nowhere"))
        assert read_answer(client).code == "not_found"
        client.sendall(request())
        assert read_answer(client).status == 200


def test_a_body_that_is_refused_with_its_header_is_not_waited_for(door: Door) -> None:
    with connect(door.port) as client:
        client.sendall(head(f"content-length: {LIMIT // 2}", path="/nowhere"))
        answer = read_answer(client)
        assert (answer.code, answer.headers["connection"]) == ("not_found", "close")
        assert read_to_end(client) == b""
