"""Server-sent events as bytes: cut a stream into frames, make a frame. Knows no JSON and no socket.

A frame is the shortest run of bytes that ends in two line ends (LF, CRLF or CR, mixed as they come). Frames are handed
on as the bytes they came in: joined, they are the stream again.
"""

from __future__ import annotations

import re
from typing import Final

from kimi_serve.errors import KimiServeError

MAX_FRAME_BYTES: Final = 4 << 20  # logprobs of a long chunk take hundreds of kilobytes; nothing real takes megabytes

# A CR counts as a line end only once the next byte shows that no LF belongs to it.
_LINE_END: Final = rb"(?:\n|\r\n|\r(?=[^\n]))"
_FRAME_END: Final = re.compile(_LINE_END + _LINE_END)
_LAST_FRAME_END: Final = re.compile(rb"(?:\n|\r\n|\r)\r\Z")
_LINES: Final = re.compile(rb"\r\n|\n|\r")
_LONGEST_END: Final = 4  # CRLF CRLF


class FrameTooLargeError(KimiServeError, ValueError):
    """A frame exceeds the bound, or never ends."""


class Splitter:
    """Cuts a byte stream that arrives in chunks of any size into frames."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max = max_frame_bytes
        self._rest = bytearray()
        self._has_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that this chunk completes. Raises FrameTooLargeError; the stream cannot be read on after it."""
        fresh = not self._rest
        if fresh and (whole := self._whole(chunk)):
            return whole
        cr = self._has_cr or b"\r" in chunk
        searched = 0
        if not fresh:
            searched = max(0, len(self._rest) - _LONGEST_END + 1)
            self._rest += chunk
        data: bytes | bytearray = chunk if fresh else self._rest
        frames, end = self._cut_by_pattern(data, searched) if cr else self._cut_by_lf(data, searched)
        if fresh:
            self._rest += memoryview(data)[end:]
        else:
            del self._rest[:end]
        self._has_cr = cr and b"\r" in self._rest
        self._check(len(self._rest))
        return frames

    def finish(self) -> list[bytes]:
        """Where the stream ends: the frame, if any, that only waited to see whether an LF follows its last CR."""
        frames = [bytes(self._rest)] if _LAST_FRAME_END.search(self._rest) else []
        self._rest.clear()
        return frames

    @property
    def is_inside_frame(self) -> bool:
        return bool(self._rest)

    def _whole(self, chunk: bytes) -> list[bytes] | None:
        """How engines send: whole frames, most often one. None where it is anything else."""
        if not chunk.endswith(b"\n\n") or b"\r" in chunk or self._has_cr or len(chunk) > self._max:
            return None
        if chunk.find(b"\n\n") == len(chunk) - 2:
            return [chunk]
        frames = [frame + b"\n\n" for frame in chunk.split(b"\n\n")]
        return frames[:-1] if frames[-1] == b"\n\n" else None

    def _cut_by_lf(self, data: bytes | bytearray, searched: int) -> tuple[list[bytes], int]:
        frames, start = [], 0
        while (found := data.find(b"\n\n", searched)) >= 0:
            searched = found + 2
            self._check(searched - start)
            frames.append(bytes(data[start:searched]))
            start = searched
        return frames, start

    def _cut_by_pattern(self, data: bytes | bytearray, searched: int) -> tuple[list[bytes], int]:
        frames, start = [], 0
        while found := _FRAME_END.search(data, searched):
            searched = found.end()
            self._check(searched - start)
            frames.append(bytes(data[start:searched]))
            start = searched
        return frames, start

    def _check(self, size: int) -> None:
        if size > self._max:
            raise FrameTooLargeError(f"a server-sent event of more than {self._max} bytes")


def event(data: bytes | str, event: str | None = None) -> bytes:
    """A frame; data of several lines becomes several data fields, as the format wants it."""
    payload = data.encode() if isinstance(data, str) else data
    fields = b"".join(b"data: %s\n" % line for line in _LINES.split(payload))
    return fields + b"\n" if event is None else b"event: %s\n%s\n" % (_one_line(event), fields)


def comment(text: str) -> bytes:
    """A frame that clients ignore."""
    return b": %s\n\n" % _one_line(text)


def data_of(frame: bytes) -> bytes | None:
    """What a frame carries; None for a comment, or a frame without data."""
    if frame.startswith(b"data: ") and frame.find(b"\n") == len(frame) - 2 and b"\r" not in frame:
        return frame[6:-2]
    lines = [line[5:] for line in _LINES.split(frame) if line.startswith(b"data:")]
    return b"\n".join(line.removeprefix(b" ") for line in lines) if lines else None


def _one_line(text: str) -> bytes:
    line = text.encode()
    assert not _LINES.search(line), f"one line expected: {text!r}"
    return line


DONE: Final = event("[DONE]")
KEEP_ALIVE: Final = comment("keep-alive")
