"""How a connection notices that the machine at its other end is gone without a word. Knows options of sockets only."""

from __future__ import annotations

import socket
from typing import Protocol

_PROBES = 3


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
