"""An engine's answer as it comes, within its limits of time. Knows clocks; neither a connection's bytes nor a frame."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from typing import Literal, Self

from kimi_serve.gateway.upstream.wire import Take, Wire
from kimi_serve.protocol.errors import ApiError

Stage = Literal["connect", "headers", "body"]
Limit = Literal["connect_s", "first_byte_s", "between_frames_s", "total_s"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. A request that does not stream is silent while the engine works: its first_byte_s is its total_s."""

    connect_s: float = 2.0
    first_byte_s: float = 300.0  # from the request to the first byte of the answer's body; holds queueing and prefill
    between_frames_s: float = 60.0
    total_s: float = 3600.0
    unreachable_s: float = 30.0  # without a sign of life from the engine's machine


class UpstreamError(ApiError):
    """An engine that could not be reached, broke off or stayed silent; `stage` is what was being waited for."""

    def __init__(
        self,
        code: Literal["upstream_error", "upstream_timeout"],
        message: str,
        *,
        stage: Stage,
        received: bool,
        is_lost: bool = False,
    ) -> None:
        super().__init__(code, message)
        self.is_lost = is_lost  # the connection is, so no engine works at the request any more
        self.stage: Stage = stage
        self.may_retry = not received  # no byte of an answer's body has come: another engine can give all of it


class Chunks:
    """The body as it comes, several frames at a time where several have arrived. Raises UpstreamError."""

    def __init__(self, wire: Wire, timeouts: Timeouts, began: float) -> None:
        self._wire, self._timeouts = wire, timeouts
        self._loop = asyncio.get_running_loop()
        self._silent_at = began + timeouts.first_byte_s
        self._ends_at = began + timeouts.total_s
        self._is_waiting = False
        self._has_begun = False
        self._first: bytes | None = None
        self._ending: ApiError | None = None
        self._is_late = False
        self._rings_at = 0.0  # for who does not want to wait longer
        self._patience = 0.0
        self._has_rung = False
        self._waits_on = False  # the wait for this chunk was cut short, and goes on: the engine is no less silent
        self._bell: asyncio.TimerHandle | None = None
        self._take: Take | None = None
        self._timer = self._loop.call_at(min(self._silent_at, self._ends_at), self._look)

    def __aiter__(self) -> Self:
        return self

    async def head(self) -> None:
        """Returns when the answer's header is there."""
        await self._until_news()
        if not self._wire.is_headed:
            raise self._failure()

    async def begin(self) -> None:
        """Keeps the first chunk for who iterates; of an empty body, its end."""
        if self._first is None:
            try:
                self._first = await anext(self)
            except StopAsyncIteration:
                self._first = b""

    async def next_within(self, seconds: float) -> bytes | None:
        """The next chunk; None where it takes longer, and nothing is lost. Raises as iteration does, and at its end."""
        self._patience, self._rings_at = seconds, self._loop.time() + seconds
        if self._bell is None or self._bell.when() > self._rings_at:
            self._ring_at(self._rings_at)
        return await self._next()

    def divert(self, take: Take) -> None:
        """Offers each chunk that is waited for to `take` first; what it takes (True) is not waited for any more."""
        self._take = take
        self._wire.divert(self._pass)

    def put_back(self, read: bytes) -> None:
        """All that was read so far, to be read again."""
        self._first = read

    def end(self, error: ApiError) -> None:
        self._ending = error
        self._wire.wake()

    async def __anext__(self) -> bytes:
        self._rings_at = float("inf")
        while (chunk := await self._next()) is None:
            pass
        return chunk

    def close(self) -> None:
        self._timer.cancel()
        if self._bell is not None:
            self._bell.cancel()

    async def _next(self) -> bytes | None:
        if self._first is not None and self._ending is None:
            first, self._first = self._first, None
            if not first:
                raise StopAsyncIteration
            return first
        if self._has_begun and not self._waits_on:  # the time that a slow client takes is not the engine's silence
            self._silent_at = self._loop.time() + self._timeouts.between_frames_s
        self._waits_on = self._has_rung = False
        await self._until_news()
        wire = self._wire
        if self._ending is not None or self._is_late:
            raise self._failure()
        if wire.has_unread:
            if not self._has_begun:
                self._has_begun = True
                self._look_again_in(self._timeouts.between_frames_s)
            return wire.take()
        if wire.is_over:
            self.close()
            raise StopAsyncIteration
        if wire.error is not None:
            raise self._failure()
        self._waits_on = True
        return None

    async def _until_news(self) -> None:
        wire, self._is_waiting = self._wire, True
        is_headed = wire.is_headed
        try:
            while not (wire.has_unread or wire.is_over or wire.error or self._has_rung or self._is_ended()):
                await wire.wait()
                if wire.is_headed and not is_headed:
                    return
        finally:
            self._is_waiting = False

    def _is_ended(self) -> bool:
        return self._is_late or self._ending is not None

    def _pass(self, chunk: bytes) -> bool:
        """In the callback that the bytes came with: a wait goes on, and both its limits move."""
        assert self._take is not None
        if not self._has_begun or not self._take(chunk):
            return False
        now = self._loop.time()
        self._silent_at, self._rings_at = now + self._timeouts.between_frames_s, now + self._patience
        return True

    def _look(self) -> None:
        """One timer an answer, which finds that its limit has moved on, is cheaper than one a chunk."""
        now = self._loop.time()
        if now >= self._ends_at or (self._is_waiting and now >= self._silent_at):
            self._is_late = True
            self._wire.wake()
        else:
            self._look_again_in(self._silent_at - now if self._is_waiting else self._timeouts.between_frames_s)

    def _look_again_in(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_at(min(self._loop.time() + seconds, self._ends_at), self._look)

    def _ring(self) -> None:
        self._bell = None
        if not self._is_waiting:
            return
        if self._loop.time() < self._rings_at:
            if self._rings_at != float("inf"):
                self._ring_at(self._rings_at)
        else:
            self._has_rung = True
            self._wire.wake()

    def _ring_at(self, when: float) -> None:
        if self._bell is not None:
            self._bell.cancel()
        self._bell = self._loop.call_at(when, self._ring)

    def _failure(self) -> ApiError:
        self.close()
        if self._ending is not None:
            return self._ending
        stage: Stage = "body" if self._wire.is_headed else "headers"
        if self._is_late:
            return late(self._limit(stage), self._timeouts, stage, received=self._has_begun)
        error = self._wire.error
        if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
            message = f"the engine's machine took nothing for unreachable_s = {self._timeouts.unreachable_s:g} s"
            return UpstreamError("upstream_timeout", message, stage=stage, received=self._has_begun, is_lost=True)
        message = "the engine broke off its answer; send the request again"
        if stage == "headers":
            message = "the engine hung up before it answered; send the request again"
        return UpstreamError("upstream_error", message, stage=stage, received=self._has_begun, is_lost=True)

    def _limit(self, stage: Stage) -> Limit:
        if stage == "body" and self._loop.time() >= self._ends_at:
            return "total_s"
        return "between_frames_s" if self._has_begun else "first_byte_s"


def late(limit: Limit, limits: Timeouts, stage: Stage, *, received: bool) -> UpstreamError:
    seconds: float = getattr(limits, limit)
    message = f"the engine was silent for longer than {limit} = {seconds:g} s"
    if limit == "total_s":
        message = f"the answer took longer than {limit} = {seconds:g} s"
    return UpstreamError("upstream_timeout", message, stage=stage, received=received)
