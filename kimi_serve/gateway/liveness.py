"""Whether there still is somebody at the other end of a connection. Knows what the kernel can tell of sockets."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from typing import Final, Protocol

_PROBES: Final = 3


class Options(Protocol):
    """A socket, or what an event loop shows of one."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


def watch(connection: Options, seconds: float) -> None:
    """Silent connections are probed; one that acknowledges nothing for so long is reset, whatever state it is in.

    A listening socket hands this on to the connections that it accepts.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    between = max(1, round(seconds / (_PROBES + 1)))
    wanted = {
        "TCP_KEEPIDLE": between,
        "TCP_KEEPINTVL": between,
        "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": round(seconds * 1000),  # bounds what was sent and not acknowledged, as probes do silence
    }
    for name, value in wanted.items():
        if hasattr(socket, name):  # macOS has not all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def unsent_bytes(transport: asyncio.Transport) -> int:
    """What the other end has not taken yet. The kernel says that there is room again only when much is free at once."""
    waiting = transport.get_write_buffer_size()
    if sys.platform != "linux":
        return waiting
    number = transport.get_extra_info("socket").fileno()
    (queued,) = struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, b"\0" * 4))
    return waiting + int(queued)
