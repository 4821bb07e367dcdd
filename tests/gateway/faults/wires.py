"""A wire between two programs, which can be cut, slow or dead. Knows bytes in two directions; no HTTP."""

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Wire:
    """What goes through it can be reset by chance, or stop: then nothing is read, and nothing said of it."""

    target: int
    port: int
    chance: random.Random
    share_cut: float = 0.0  # of the pieces that go through, either way
    delay_s: float = 0.0  # before each of them goes on
    cut: int = 0
    accepted: int = 0
    live: threading.Event = field(default_factory=threading.Event)
    _pairs: set[tuple[socket.socket, socket.socket]] = field(default_factory=set)

    def freeze(self) -> None:
        self.live.clear()

    def accept(self, near: socket.socket) -> None:
        self.accepted += 1
        try:
            far = socket.create_connection(("127.0.0.1", self.target))
        except ConnectionRefusedError:
            near.close()
            return
        pair = (near, far)
        self._pairs.add(pair)
        for source, sink in (pair, pair[::-1]):
            threading.Thread(target=self._carry, args=(source, sink, pair), daemon=True).start()

    def close(self) -> None:
        self.live.set()
        for pair in list(self._pairs):
            self._drop(pair)

    def _carry(self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        with suppress(OSError):
            while True:
                self.live.wait()
                data = source.recv(1 << 16)
                self.live.wait()
                if self.chance.random() < self.share_cut:
                    self.cut += 1
                    break
                if not data:
                    break
                if self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(data)
        self._drop(pair)

    def _drop(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """A reset on both sides, whatever is under way."""
        self._pairs.discard(pair)
        for end in pair:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RD)  # wakes who reads from it; a close alone would not
            end.close()


@contextmanager
def wire_to(target: int, seed: int = 1) -> Iterator[Wire]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        wire = Wire(target, listener.getsockname()[1], random.Random(seed))
        wire.live.set()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    wire.accept(listener.accept()[0])

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield wire
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            wire.close()
