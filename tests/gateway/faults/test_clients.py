"""Clients that dawdle, and clients that are gone: a limit with a name ends the one, and nobody works for the other."""

import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from kimi_serve.testing.fake_engine import FakeEngine
from tests.gateway.faults.clients import connect, head, read_answer, read_to_end, read_until, request, reset, trickle
from tests.gateway.faults.conftest import AT_ENGINE, CHAT, MODEL, Door, Open
from tests.waiting import eventually

FOREVER = 600.0  # seconds: longer than any test waits


def test_a_header_that_comes_byte_by_byte_ends_at_its_limit(hasty: Door) -> None:
    with connect(hasty.port) as client:
        trickle(client, head("content-length: 2", f"x: {'y' * 100}"), 0.05)
        answer = read_answer(client)
        assert (answer.status, answer.code) == (408, "header_timeout")
        assert read_to_end(client) == b""


@pytest.mark.parametrize("sent", [b"", b"\r\n"], ids=["nothing", "an empty line"])
def test_a_connection_on_which_nothing_is_asked_is_closed(hasty: Door, sent: bytes) -> None:
    with connect(hasty.port) as client:
        client.sendall(sent)
        assert read_to_end(client) in (b"", b"HTTP/1.1 408") or sent
        eventually(lambda: hasty.metric("connections") == 1)


def test_the_second_header_of_a_connection_has_the_same_limit(hasty: Door) -> None:
    with connect(hasty.port) as client:
        client.sendall(request())
        assert read_answer(client).status == 200
        trickle(client, head("content-length: 2", f"x: {'y' * 100}"), 0.05)
        assert read_answer(client).code == "header_timeout"


def test_a_body_that_comes_byte_by_byte_ends_at_its_limit(hasty: Door, fake: FakeEngine) -> None:
    with connect(hasty.port) as client:
        client.sendall(head("content-length: 1000"))
        trickle(client, b"{" * 60, 0.05)
        answer = read_answer(client)
        assert (answer.status, answer.code) == (408, "body_timeout")
        assert answer.headers["connection"] == "close"
    hasty.assert_idle()
    assert fake.record.count == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_never_reads_is_ended_and_costs_no_memory(hasty: Door, fake: FakeEngine, stream: bool) -> None:
    """16 MB are not sent to it."""
    fake.dials = fake.dials.turned({"tokens": 8000, "text": "x" * 2000} if stream else {"text": "x" * 1_000_000})
    stalled = hasty.metric("stalled_clients_total")
    before = hasty.most_resident_bytes()
    with connect(hasty.port, receive_buffer=4096) as client:
        client.sendall(request(stream=stream))
        eventually(lambda: hasty.metric("stalled_clients_total") == stalled + 1)
        grown = hasty.most_resident_bytes() - before
    assert grown < (16 << 20 if stream else 128 << 20)  # what does not stream is held whole, and more than once
    hasty.assert_idle()


def test_a_client_that_reads_slowly_gets_everything(hasty: Door, fake: FakeEngine) -> None:
    fake.dials = fake.dials.turned({"tokens": 200, "text": "x" * 20_000})
    heard = bytearray()
    with connect(hasty.port, receive_buffer=1 << 16) as client:
        client.sendall(request(stream=True, lines=("connection: close",)))
        while data := client.recv(1 << 16):
            heard += data
            time.sleep(0.05)  # several times the limit in all, and never so long at once
    assert heard.count(b"x" * 20_000) == 200
    assert heard.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


Left = Callable[[socket.socket], None]


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["closed", "reset"])
def test_a_client_that_leaves_within_a_body_is_forgotten(door: Door, leave: Left) -> None:
    client = connect(door.port)
    client.sendall(head("content-length: 1000000") + b"x" * 500_000)
    eventually(lambda: door.metric("in_flight_bytes") >= 400_000)
    leave(client)
    door.assert_idle()


def test_a_client_that_leaves_while_its_picture_is_fetched_is_forgotten(
    door: Door, fake: FakeEngine, silent_origin: int
) -> None:
    image = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{silent_origin}/x.png"}}
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": [image]}]}).encode()
    client = connect(door.port)
    client.sendall(head(f"content-length: {len(body)}", path=CHAT) + body)
    eventually(lambda: door.metric("in_flight_bytes") >= len(body))
    client.close()
    door.assert_idle()
    assert fake.record.count == 0


STATES = {
    "before headers": {"fail": "hang_before_headers"},
    "in prefill": {"ttft_s": FOREVER},
    "in decode": {"itl_s": 0.02, "tokens": 100_000},
    "in silence": {"fail": "hang_mid_stream", "after_tokens": 2},
}


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["closed", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("dials", STATES.values(), ids=STATES)
def test_a_client_that_leaves_ends_its_work_at_the_engine(
    door: Door, fake: FakeEngine, dials: dict[str, object], stream: bool, leave: Left
) -> None:
    fake.dials = fake.dials.turned({**dials, "itl_s": FOREVER} if not stream else dials)
    client = connect(door.port)
    client.sendall(request(stream=stream))
    eventually(lambda: fake.record.in_flight == 1)
    if stream and dials.get("tokens", dials.get("after_tokens")):
        read_until(client, b'"content":" token"')
    leave(client)
    began = time.monotonic()
    eventually(lambda: fake.record.aborts)
    print(f"cancelled at the engine after {time.monotonic() - began:.3f} s")
    door.assert_idle()


def test_a_client_that_leaves_with_another_request_in_the_pipeline_ends_both(door: Door, fake: FakeEngine) -> None:
    fake.dials = fake.dials.turned({"ttft_s": FOREVER})
    client = connect(door.port)
    client.sendall(request(stream=True) + request())
    eventually(lambda: fake.record.in_flight == 1)
    client.close()
    eventually(lambda: fake.record.aborts)
    door.assert_idle()
    assert fake.record.count == 1


def test_a_client_that_leaves_the_queue_never_reaches_an_engine(door: Door, fake: FakeEngine) -> None:
    fake.dials = fake.dials.turned({"ttft_s": FOREVER})
    with ExitStack() as stack:
        for _ in range(AT_ENGINE):
            stack.enter_context(connect(door.port)).sendall(request())
        eventually(lambda: fake.record.in_flight == AT_ENGINE)
        waiting = [connect(door.port) for _ in range(20)]
        for number, client in enumerate(waiting):
            client.sendall(request(stream=number % 2 == 0))
        eventually(lambda: door.metric("waiting_requests") == 20)
        for number, client in enumerate(waiting):
            (reset if number % 3 else socket.socket.close)(client)
        eventually(lambda: door.metric("waiting_requests") == 0)
        assert fake.record.count == AT_ENGINE
    door.assert_idle()


def test_a_connection_too_many_is_refused_and_the_next_is_served_when_one_has_left(
    open_door: Open, fake: FakeEngine, engine_url: str
) -> None:
    door = open_door([engine_url], listen__connections=3)
    eventually(lambda: door.metric("connections") == 1)
    held = [connect(door.port) for _ in range(3)]
    for client in held[:2]:
        client.sendall(request())
        assert read_answer(client).status == 200
    with connect(door.port) as client:
        answer = read_answer(client)
        assert (answer.status, answer.code) == (503, "too_many_connections")
        assert int(answer.headers["retry-after"]) >= 1
    for client in held:
        client.close()
    eventually(door.is_ready)
    assert door.chat().status_code == 200
    door.assert_idle()
