"""A file on its way to the disk. Knows bytes, their hash and a name that nobody reads yet; no tenant's rights."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from blake3 import blake3

from kimi_serve.gateway.files.database import FilesAwayError
from kimi_serve.gateway.files.room import full

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Incoming:
    """`async with Incoming(folder) as incoming:`; what was not placed when the block ends is gone."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / secrets.token_hex(16)
        self._file: FileIO | None = None
        self._hasher = blake3()
        self._under_way: asyncio.Future[object] | None = None
        self.size = 0

    async def __aenter__(self) -> Self:
        await self._on_disk(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._under_way is not None and not self._under_way.done():
            await asyncio.wait([self._under_way])  # who was cancelled left it: no file is closed while it is written
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._close))

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        await self._on_disk(lambda: self._write(data))

    async def place(self, folder: Path) -> str:
        """Under its hash, whole and on the disk; the hash. Where its bytes are there already, they are kept once."""
        return await self._on_disk(lambda: self._place(folder))

    async def _on_disk(self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self._under_way = future  # type: ignore[assignment]  # nobody asks for its result
        try:
            return await asyncio.shield(future)
        except OSError as error:
            logger.warning("the folder of files fails", extra={"reason": os.strerror(error.errno or 0)})
            raise (full() if error.errno in (errno.ENOSPC, errno.EDQUOT) else FilesAwayError()) from None

    def _open(self) -> None:
        self._file = FileIO(self._path, "xb", opener=_private)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._hasher.update(data)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _place(self, folder: Path) -> str:
        assert self._file is not None
        name = self._hasher.hexdigest()
        target = blob(folder, name)
        if not target.exists():
            os.fsync(self._file.fileno())
            target.parent.mkdir(mode=0o700, exist_ok=True)
            self._path.replace(target)
            _sync(target.parent)
            _sync(folder)
        return name

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        with suppress(OSError):  # it was placed, or the start of the next gateway removes it
            self._path.unlink(missing_ok=True)


def blob(folder: Path, name: str) -> Path:
    return folder / name[:2] / name


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _sync(folder: Path) -> None:
    """A name is on the disk when its folder is."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
