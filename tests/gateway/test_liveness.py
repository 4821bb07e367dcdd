"""What the kernel is told about connections, and what it tells of them."""

import asyncio
import socket
import sys

import pytest

from kimi_serve.gateway import liveness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own words")


def test_an_accepted_connection_is_watched_as_its_listener_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        liveness.watch(listener, 8)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            told = [accepted.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
    assert told == [2, 2, 3, 8000]


def test_what_the_other_end_has_not_taken_is_counted_in_the_kernel_too() -> None:
    async def fill() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        near.setblocking(False)
        with far:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
            transport.write(b"x" * 1000)
            before = liveness.unsent_bytes(transport)
            far.recv(1000)
            after = liveness.unsent_bytes(transport)
            transport.close()
            await asyncio.sleep(0)
            return before, after

    before, after = asyncio.run(fill())
    assert before >= 1000
    assert after == 0
