"""Applications on real sockets: they answer when the block begins, and are gone when it ends."""

import json
import os
import socket
import threading
import urllib.request

import pytest
from starlette.types import Receive, Scope, Send

from kimi_serve.testing.serving import Served, ServingError, in_process, in_thread

FAKE = "kimi_serve.testing.fake_engine:create"


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no"})


def get(served: Served, path: str = "/") -> bytes:
    with urllib.request.urlopen(served.url + path, timeout=5) as answer:
        body: bytes = answer.read()
        return body


def is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_an_application_answers_in_a_thread_and_ends_with_the_block() -> None:
    before = threading.active_count()
    with in_thread(hello) as served:
        assert get(served) == b"hello"
    assert is_closed(served.port)
    assert threading.active_count() == before


def test_two_applications_get_two_ports() -> None:
    with in_thread(hello) as one, in_thread(hello) as other:
        assert one.port != other.port
        assert get(one) == get(other)


def test_a_request_that_hangs_does_not_keep_the_thread() -> None:
    with in_thread(hello) as served, socket.create_connection(("127.0.0.1", served.port)) as idle:
        idle.sendall(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\n")
    assert is_closed(served.port)


def test_an_application_that_fails_to_start_is_an_error() -> None:
    with pytest.raises(ServingError, match="ended before"), in_thread(broken):
        pass


def test_a_factory_runs_in_its_own_process_with_its_options() -> None:
    with in_process(FAKE, options={"model": "elsewhere"}) as served:
        assert served.pid != os.getpid()
        assert json.loads(get(served, "/v1/models"))["data"][0]["id"] == "elsewhere"
    assert is_closed(served.port)


def test_a_killed_process_refuses_connections() -> None:
    with in_process(FAKE) as served:
        assert served.pid is not None
        os.kill(served.pid, 9)
        os.waitid(os.P_PID, served.pid, os.WEXITED | os.WNOWAIT)
        assert is_closed(served.port)


def test_a_factory_that_fails_is_an_error() -> None:
    with pytest.raises(ServingError, match="ended before"), in_process(FAKE, options={"speed": 1}):
        pass
