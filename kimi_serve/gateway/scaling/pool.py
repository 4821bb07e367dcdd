"""Processes that scale pictures, a bounded number of them, each ended where a picture takes too long. Knows no request.

Threads wait for them, so that nothing here is the event loop's; a process is started when it is first needed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kimi_serve.gateway.scaling.worker import READY, Size
from kimi_serve.protocol.errors import ApiError


@dataclass(frozen=True, slots=True)
class Job:
    data: bytes
    kind: str  # a format, as media.headers names it
    stated: Size  # by its header, upright
    wanted: Size


@dataclass(frozen=True, slots=True)
class Result:
    media_type: str
    data: bytes


class Pool:
    def __init__(self, workers: int, timeout_s: float, memory: int) -> None:
        self._timeout_s, self._memory = timeout_s, memory
        self._threads = ThreadPoolExecutor(workers, "scaling")
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._lock = threading.Lock()  # for which worker is idle or busy, and whether the pool is closed
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_closed = True
            for worker in self._busy:
                worker.kill()  # its thread finds it ended, and closes the pipes that it alone uses
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    async def scale(self, job: Job) -> Result:
        """Waits for its turn. ApiError: invalid_image, image_too_large."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._scale, job)

    def _scale(self, job: Job) -> Result:
        worker = self._taken()
        try:
            found = worker.do(job, self._timeout_s)
        except BaseException:
            worker.end()
            with self._lock:
                self._busy.discard(worker)
            raise
        self._put_back(worker)
        if "error" not in found.told:
            return Result(str(found.told["media_type"]), found.data)
        if found.told["error"] == "memory":
            raise _too_large(f"needs more than the {self._memory} bytes of memory allowed for it")
        raise ApiError("invalid_image", f"image: cannot be scaled down: {found.told['error']}")

    def _taken(self) -> _Worker:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
            if worker is not None:
                self._busy.add(worker)
                return worker
        worker = _Worker(self._memory, self._timeout_s)
        with self._lock:
            self._busy.add(worker)
            if self._is_closed:
                worker.kill()
        return worker

    def _put_back(self, worker: _Worker) -> None:
        with self._lock:
            self._busy.discard(worker)
            is_kept = not self._is_closed
            if is_kept:
                self._idle.append(worker)
        if not is_kept:
            worker.end()


@dataclass(frozen=True, slots=True)
class _Found:
    told: dict[str, object]
    data: bytes


class _Worker:
    def __init__(self, memory: int, timeout_s: float) -> None:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        command = [sys.executable, "-s", "-P", "-m", "kimi_serve.gateway.scaling.worker", str(memory)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": path},  # and none of the gateway's secrets
            start_new_session=True,  # a person's Ctrl-C is for the gateway, which ends this
        )
        self._was_late = False
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        with self._ended_after(timeout_s):
            if self._out.readline() != READY:
                self.end()
                raise self._lost(timeout_s, "to start")

    def do(self, job: Job, timeout_s: float) -> _Found:
        told = {"size": len(job.data), "kind": job.kind, "stated": job.stated, "wanted": job.wanted}
        with self._ended_after(timeout_s):
            try:
                self._in.write(json.dumps(told).encode() + b"\n")
                self._in.write(job.data)
                self._in.flush()
                line = self._out.readline()
                said = json.loads(line) if line.endswith(b"\n") else None
                data = self._out.read(said["size"]) if said is not None else b""
            except OSError:
                said, data = None, b""
        if said is None or len(data) < said["size"]:
            raise self._lost(timeout_s, "to be decoded and scaled")
        return _Found(said, data)

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """For the thread that uses it alone: a pipe cannot be closed while another thread reads or writes it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._out, self._in):
            try:
                pipe.close()
            except OSError:  # what was not written yet never will be
                continue

    @contextmanager
    def _ended_after(self, seconds: float) -> Iterator[None]:
        def late() -> None:
            self._was_late = True
            self._process.kill()

        timer = threading.Timer(seconds, late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _lost(self, timeout_s: float, what: str) -> ApiError:
        if self._was_late:
            return _too_large(f"took more than the {timeout_s:g} s allowed {what}")
        return ApiError("invalid_image", "image: cannot be scaled down: its pixels end the process that decodes them")


def _too_large(what: str) -> ApiError:
    return ApiError("image_too_large", f"image: to scale it down here {what}; scale it down before you send it")
