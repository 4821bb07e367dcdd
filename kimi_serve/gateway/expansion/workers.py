"""Processes that read clients' files, one file each. Knows starts, limits and ends; nothing of any format.

A process is given one file and ends with it, so nothing of one tenant's file is left where another's is read. One
that is started already waits for the next file, once there has been a first. Whatever a process does, says or fails
to do, it is killed when its time is over, and the gateway reads no more from it than was agreed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

import kimi_serve
from kimi_serve.gateway.expansion.child import wire
from kimi_serve.gateway.expansion.child.refusal import TOO_LARGE
from kimi_serve.gateway.expansion.child.wire import Json
from kimi_serve.protocol.errors import ApiError

T = TypeVar("T")

_MAIN: Final = "kimi_serve.gateway.expansion.child.main"
_OUT_OF_MEMORY: Final = 3
_CHUNK: Final = 1 << 20
_LONGEST_WHY: Final = 300
_CPU_SIGNALS: Final = (-signal.SIGXCPU, -signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one file's process."""

    memory_bytes: int  # of address space
    cpu_s: int
    timeout_s: float  # from the file's first byte to the last picture
    most_bytes: int  # of all that it may answer


class WorkerEndedError(Exception):
    """A process did not get to the end of its file."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason  # time, memory or crash


class RefusedError(Exception):
    """A process says no to its file: the kinds are of child/refusal.py."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class _Said(msgspec.Struct):
    """Of every head."""

    refused: str | None = None
    why: str = ""
    end: bool = False


class Worker:
    """One process and its file. Every wait is within the file's time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._left = 0  # bytes that it may still answer

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def open(self, limits: Limits, asked: Json, data: bytes, kind: type[T]) -> T:
        """What the reader says of the file."""
        self._left = limits.most_bytes
        await self._receive()  # that it is ready
        await self._send({"memory_bytes": limits.memory_bytes, "cpu_s": limits.cpu_s})
        await self._send(asked, data)
        _, text, _ = await self._receive()
        return _read(text, kind)

    async def show(self, plan: Json, kind: type[T]) -> AsyncIterator[tuple[T, bytes]]:
        await self._send(plan)
        while True:
            said, text, shown = await self._receive()
            if said.end:
                return
            yield _read(text, kind), shown

    async def _send(self, head: Json, data: bytes = b"") -> None:
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # it may have answered and ended: what it said is read next
            self._process.stdin.writelines(wire.pack(head, data))
            await self._process.stdin.drain()

    async def _receive(self) -> tuple[_Said, bytes, bytes]:
        """What every head may say, the whole head, and the bytes behind it."""
        assert self._process.stdout is not None
        stream = self._process.stdout
        try:
            head_size, data_size = wire.LENGTHS.unpack(await stream.readexactly(wire.LENGTHS.size))
            self._left -= head_size + data_size
            if self._left < 0:
                raise RefusedError(TOO_LARGE, "has more to show than fits into a request's body: ask for less of it")
            head = await stream.readexactly(head_size)
            data = await stream.readexactly(data_size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise WorkerEndedError(await self._why()) from None
        said = _read(head, _Said)
        if said.refused is not None:
            raise RefusedError(said.refused, said.why[:_LONGEST_WHY])
        return said, head, data

    async def _why(self) -> str:
        """It has hung up, and is on its way to its end."""
        status = await self._process.wait()
        if status == _OUT_OF_MEMORY:
            return "memory"
        return "time" if status in _CPU_SIGNALS else "crash"

    async def end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


def _read(head: bytes, kind: type[T]) -> T:
    """A process over a hostile file may say anything."""
    try:
        return msgspec.json.decode(head, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a ValidationError is one too
        raise WorkerEndedError("crash") from None


class Workers:
    """At most so many processes at once. `async with Workers(2, wait_s=10) as workers`."""

    def __init__(self, most: int, *, wait_s: float) -> None:
        self._slots = asyncio.Semaphore(most)
        self._most, self._wait_s = most, wait_s
        self._spares: dict[str, asyncio.Task[Worker]] = {}  # by reader
        self.busy = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for reader in list(self._spares):
            await self._discard(self._spares.pop(reader))

    @asynccontextmanager
    async def over(self, reader: str, limits: Limits) -> AsyncIterator[Worker]:
        """A process for one file. Raises ApiError where none is free in time, WorkerEndedError where it fails."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._slots.acquire()
        except TimeoutError:
            message = f"all {self._most} processes that read documents and videos are busy; retry later"
            raise ApiError("media_busy", message, retry_after=self._wait_s) from None
        self.busy += 1
        try:
            async with asyncio.timeout(limits.timeout_s):
                worker = await self._take(reader)
                try:
                    yield worker
                finally:
                    await _whatever_comes(worker.end())
        except TimeoutError:
            raise WorkerEndedError("time") from None
        finally:
            self.busy -= 1
            self._slots.release()

    async def _take(self, reader: str) -> Worker:
        spare = self._spares.pop(reader, None)
        self._spares[reader] = asyncio.create_task(_start(reader))
        if spare is None:
            return await _start(reader)
        try:
            worker = await asyncio.shield(spare)
        except asyncio.CancelledError:
            await _whatever_comes(self._discard(spare))
            raise
        return worker if worker.is_alive else await _start(reader)

    async def _discard(self, spare: asyncio.Task[Worker]) -> None:
        await asyncio.wait({spare})
        if spare.exception() is None:
            await spare.result().end()


async def _start(reader: str) -> Worker:
    """With nothing of the gateway's environment, which holds its secrets."""
    root = Path(kimi_serve.__file__).parents[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-s", "-B", "-m", _MAIN, reader),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.defpath, "PYTHONPATH": str(root), "LC_ALL": "C.UTF-8"},
        limit=_CHUNK,
        start_new_session=True,  # Ctrl-C is the gateway's to answer
    )
    return Worker(process)


async def _whatever_comes(work: Awaitable[T]) -> T:
    """Done to its end, also where this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
