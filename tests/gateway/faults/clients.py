"""Clients that no library would be: bytes to and from a socket. Knows HTTP's framing; expects nothing."""

import json
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tests.gateway.faults.conftest import CHAT, HELLO, MODEL

PATIENCE = 30.0  # seconds for one read


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


def connect(port: int, receive_buffer: int | None = None) -> socket.socket:
    client = socket.socket()
    client.settimeout(PATIENCE)
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        client.connect(("127.0.0.1", port))
    except OSError:
        client.close()
        raise
    return client


def request(path: str = CHAT, host: str = "gateway", lines: Iterable[str] = (), **options: object) -> bytes:
    """A whole request for an answer to Hello."""
    body = json.dumps({"model": MODEL, "messages": HELLO, **options}).encode()
    return head(f"content-length: {len(body)}", *lines, path=path, host=host) + body


def head(*lines: str, path: str = CHAT, host: str = "gateway", method: str = "POST") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", f"host: {host}", *lines, "", "")).encode()


def read_to_end(client: socket.socket) -> bytes:
    """All until the connection is closed, in whatever way."""
    heard = bytearray()
    try:
        while data := client.recv(1 << 16):
            heard += data
    except ConnectionResetError:
        pass
    return bytes(heard)


def read_answer(client: socket.socket) -> Answer:
    """One answer with a length."""
    answer, rest = read_answers(client, 1)
    assert rest == b"", rest[:200]
    return answer[0]


def read_answers(client: socket.socket, count: int) -> tuple[list[Answer], bytes]:
    answers: list[Answer] = []
    heard = b""
    while len(answers) < count:
        top, found, rest = heard.partition(b"\r\n\r\n")
        headers = _headers(top)
        length = int(headers.get("content-length", 0))
        if found and len(rest) >= length:
            answers.append(Answer(int(top.split()[1]), headers, rest[:length]))
            heard = rest[length:]
            continue
        data = client.recv(1 << 16)
        assert data, f"closed after {heard[-300:]!r}"
        heard += data
    return answers, heard


def read_until(client: socket.socket, wanted: bytes) -> bytes:
    heard = b""
    while wanted not in heard:
        data = client.recv(1 << 16)
        assert data, f"closed after {heard[-300:]!r}"
        heard += data
    return heard


def trickle(client: socket.socket, data: bytes, every_s: float) -> None:
    """Byte by byte, until the other side has had enough."""
    for position in range(len(data)):
        try:
            client.sendall(data[position : position + 1])
        except OSError:
            return
        time.sleep(every_s)


def reset(client: socket.socket) -> None:
    """Closes without a farewell."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def _headers(top: bytes) -> dict[str, str]:
    pairs = (line.partition(b":") for line in top.split(b"\r\n")[1:])
    return {name.decode().lower(): value.strip().decode() for name, _, value in pairs}
