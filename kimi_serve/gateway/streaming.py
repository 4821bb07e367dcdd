"""An engine's stream on its way to a client. Knows frames, clocks and when a client leaves; opens no connection."""

from __future__ import annotations

import asyncio
import json
import logging
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kimi_serve.errors import KimiServeError
from kimi_serve.gateway.dialects import CHAT, Dialect
from kimi_serve.protocol.errors import ApiError
from kimi_serve.protocol.sse import KEEP_ALIVE, FrameTooLargeError, Splitter, data_of

T = TypeVar("T")
Outcome = Literal["complete", "failed", "left"]

GAP_BOUNDS_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_LINGER_S: Final = 0.25  # for the end of the body behind [DONE]; without it the connection could not be used again

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Observation:
    """What a stream was like; times are the clock's own, so that a caller can count from where its request began."""

    started_at: float
    outcome: Outcome = "failed"
    error: str | None = None  # a code of protocol.errors, or "engine_error" for an error event of the engine's own
    first_at: float | None = None  # of content; the frame that only names the role is none
    last_at: float | None = None
    content_frames: int = 0
    sent_bytes: int = 0
    keep_alives: int = 0
    longest_gap_s: float = 0.0
    gaps: list[int] = field(default_factory=lambda: [0] * (len(GAP_BOUNDS_S) + 1))  # counts by GAP_BOUNDS_S, and above
    usage: Mapping[str, object] | None = None  # as the dialect tells it

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_at is None else self.first_at - self.started_at

    @property
    def mean_gap_s(self) -> float | None:
        """Between content frames; None where there are less than two."""
        if self.first_at is None or self.last_at is None or self.content_frames < 2:
            return None
        return (self.last_at - self.first_at) / (self.content_frames - 1)

    def saw(self, frames: int, now: float) -> None:
        """Content frames that came together: the first ends a gap, the others follow without one."""
        if self.last_at is None:
            self.first_at = now
        else:
            gap = now - self.last_at
            self.gaps[bisect_left(GAP_BOUNDS_S, gap)] += 1
            self.longest_gap_s = max(self.longest_gap_s, gap)
        self.gaps[0] += frames - 1
        self.last_at = now
        self.content_frames += frames


class Source(Protocol):
    """An engine's answer as it comes."""

    async def next_within(self, seconds: float) -> bytes | None:
        """The next chunk; None where it takes longer. Raises ApiError, and StopAsyncIteration at its end."""

    def divert(self, take: Callable[[bytes], bool], /) -> None:
        """Offers each chunk that is waited for to `take` first; what it takes (True) is not waited for any more."""


class Client(Protocol):
    """Who asked, as our own server knows them: what ASGI has no words for."""

    @property
    def has_left(self) -> bool: ...

    def watch(self, left: Callable[[], None] | None) -> None:
        """`left` is called when the client leaves, until the next call of this."""

    @property
    def has_sent_all(self) -> bool:
        """Whether all of the request's body is here."""

    async def rest_of_body(self, take: Callable[[bytes], None], /) -> None:
        """Gives each part to `take` in the moment in which it comes; raises what that raises, and ClientGoneError."""

    @property
    def is_reading(self) -> bool:
        """Whether what is sent now would not have to wait for what was sent before."""

    @property
    def has_room(self) -> bool:
        """Whether its answer has begun, and more of it would not have to wait."""

    def write(self, part: bytes) -> None:
        """A part of the answer, at once."""

    @property
    def send(self) -> Send:
        """The server's own: what middleware has to say is said with an answer's start, and the parts are many."""


current_client: Final[ContextVar[Client]] = ContextVar("current_client")


async def relay(
    source: Source,
    *,
    keep_alive_s: float,
    clock: Callable[[], float],
    observe: Callable[[Observation], None],
    dialect: Dialect = CHAT,
    rename: Callable[[bytes], bytes] = lambda frames: frames,
    client: Client | None = None,
) -> AsyncGenerator[bytes, None]:
    """Whole frames, byte for byte, in the groups in which they came; an error event where the engine fails; the end.

    Reads nothing ahead of its reader. Close it (contextlib.aclosing) to stop at once. `observe` is called when it ends,
    however that is. `rename` may change names in whole frames. Where all that it yields goes to `client` and nowhere
    else, tokens that come one by one go there at once, and are not yielded: no task wakes for them.
    """
    seen = Observation(clock())
    stream = _Frames(seen, clock, dialect)
    if client is not None:
        source.divert(_shortcut(stream, client, rename))
    try:
        while not stream.is_done:
            chunk = await source.next_within(keep_alive_s)
            if chunk is None:
                seen.keep_alives += 1
                yield KEEP_ALIVE
                continue
            if passed := stream.take(chunk):
                seen.sent_bytes += len(passed)
                yield rename(passed)
        with suppress(ApiError, StopAsyncIteration):
            await source.next_within(_LINGER_S)
        seen.outcome = "failed" if seen.error else "complete"
    except StopAsyncIteration:
        message = "the engine ended its answer too early; send the request again"
        yield stream.ending(ApiError("upstream_error", message))
    except FrameTooLargeError as error:
        yield stream.ending(ApiError("upstream_error", f"the engine sent {error}"))
    except ApiError as error:
        yield stream.ending(error)
    except (asyncio.CancelledError, GeneratorExit):
        seen.outcome = "left"
        raise
    finally:
        observe(seen)


def _shortcut(stream: _Frames, client: Client, rename: Callable[[bytes], bytes]) -> Callable[[bytes], bool]:
    def take(chunk: bytes) -> bool:
        if not client.has_room or not stream.takes_token(chunk):
            return False
        client.write(rename(chunk))
        return True

    return take


class _Frames:
    """Lets whole frames through and reads what is to be known of them."""

    def __init__(self, seen: Observation, clock: Callable[[], float], dialect: Dialect) -> None:
        self._seen, self._clock, self._dialect = seen, clock, dialect
        self._splitter = Splitter()
        self._passed = 0
        self.is_done = False

    def take(self, chunk: bytes) -> bytes:
        was_inside = self._splitter.is_inside_frame
        frames = self._splitter.feed(chunk)
        if not frames:
            return b""
        content = 0
        for position, frame in enumerate(frames):
            is_end = self._dialect.is_end(frame)
            if is_end or b'"usage":' in frame or b'"error":' in frame:
                self._read(frame)
            if is_end:
                self.is_done = True
                frames = frames[: position + 1]
                break
            if self._dialect.is_content(frame):
                content += 1
        self._passed += len(frames)
        if content:
            self._seen.saw(content, self._clock())
        is_all = not was_inside and not self._splitter.is_inside_frame and not self.is_done
        return chunk if is_all else b"".join(frames)

    def takes_token(self, chunk: bytes) -> bool:
        """Whether it is one whole frame with a token, and with nothing else that is to be known; then it has passed."""
        if self.is_done or self._splitter.is_inside_frame or b"\r" in chunk or not chunk.endswith(b"\n\n"):
            return False
        if chunk.find(b"\n\n") != len(chunk) - 2 or b'"usage":' in chunk or b'"error":' in chunk:
            return False
        if not self._dialect.is_content(chunk):  # so it is not the end either
            return False
        self._passed += 1
        self._seen.saw(1, self._clock())
        self._seen.sent_bytes += len(chunk)
        return True

    def _read(self, frame: bytes) -> None:
        with suppress(ValueError):  # what is not JSON is the client's to judge, byte for byte
            said = json.loads(data_of(frame) or b"")
            if isinstance(said, dict):
                if isinstance(usage := self._dialect.usage_of(said), dict):
                    self._seen.usage = usage
                if self._dialect.is_failure(said):
                    self._seen.error = "engine_error"

    def ending(self, error: ApiError) -> bytes:
        """How a stream that has begun ends without success."""
        self._seen.error = error.code
        return self._dialect.failure(error, self._passed)


class ClientGoneError(KimiServeError):
    """The client closed its connection; there is nobody to answer."""


async def while_connected(
    receive: Receive, work: Coroutine[object, object, T], on_left: Callable[[], None] = lambda: None
) -> T:
    """Awaits the work. When the client leaves it cancels it and raises ClientGoneError. For after the body is read.

    `on_left` is called the moment it is seen, before anything is given back.
    """
    client = current_client.get(None)
    if client is None:
        return await _while_receiving(receive, work, on_left)
    task, has_left = asyncio.current_task(), False
    assert task is not None
    if client.has_left:
        work.close()
        on_left()
        raise ClientGoneError

    def left() -> None:
        nonlocal has_left
        has_left = True
        on_left()
        task.cancel()

    client.watch(left)
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        client.watch(None)


async def _while_receiving(receive: Receive, work: Coroutine[object, object, T], on_left: Callable[[], None]) -> T:
    """Under any server: who leaves is a message."""
    working = asyncio.create_task(work)  # what it waits for wakes it alone, not all of the application around it
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        if not working.done():  # servers say the same when an answer is complete
            has_left = True
            on_left()
            working.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await working
    except asyncio.CancelledError:
        own = asyncio.current_task()
        if has_left and own is not None and not own.cancelling():
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()


class SseResponse(Response):
    """Sends what an async generator yields, as it comes, and closes the generator at once when the client leaves.

    A part is asked for when the one before has gone to the socket: what a slow client does not take is not read.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        parts: AsyncGenerator[bytes, None],
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        dialect: Dialect = CHAT,
        on_left: Callable[[], None] = lambda: None,
    ) -> None:
        self.parts, self.dialect, self.on_left = parts, dialect, on_left
        self.status_code = status_code
        self.background = None
        # Proxies such as nginx collect a response before they pass it on, unless told not to.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGoneError):
            await while_connected(receive, self._send_all(send), self.on_left)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self.parts) as parts:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            client = current_client.get(None)
            send = send if client is None else client.send
            try:
                async for part in parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            except Exception:
                logger.exception("a stream broke off")
                error = ApiError("internal_error", "the gateway failed in the middle of the answer")
                sorry = self.dialect.failure(error, 0)
                await send({"type": "http.response.body", "body": sorry, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
