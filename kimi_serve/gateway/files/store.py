"""The files in a folder: their bytes under their hash, what is known of them in SQLite. Knows tenants; no request.

Bytes come first and the record follows, so a record always has its bytes; bytes without a record are what a crash
left, and go at the next start. One gateway at a time has the folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, Final

from kimi_serve.errors import ConfigError
from kimi_serve.gateway.files.database import FilesAwayError
from kimi_serve.gateway.files.incoming import Incoming, blob
from kimi_serve.gateway.files.records import Purpose, StoredFile, file_not_found, new_file_id
from kimi_serve.gateway.files.room import Room
from kimi_serve.gateway.settings import FileSettings
from kimi_serve.gateway.sqlite import Sqlite

_COLUMNS: Final = ", ".join(field.name for field in fields(StoredFile))
_ADD: Final = f"INSERT OR IGNORE INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_GET: Final = f"SELECT {_COLUMNS} FROM files WHERE id = ? AND tenant = ? AND (expires IS NULL OR expires > ?)"
_NEEDED: Final = (
    "SELECT 1 FROM files WHERE hash = :hash UNION ALL "
    "SELECT 1 FROM batches WHERE input_hash = :hash AND ended IS NULL LIMIT 1"
)


class FileStore:
    def __init__(self, folder: Path, database: Sqlite, rules: FileSettings) -> None:
        self._blobs, self._incoming = folder / "blobs", folder / "incoming"
        self._database, self._rules = database, rules
        self._turn = asyncio.Lock()  # between bytes and their record nobody removes the bytes
        self.room = Room(rules)

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path, database: Sqlite, rules: FileSettings) -> AsyncIterator[FileStore]:
        store = cls(folder, database, rules)
        await store._start()
        sweeping = asyncio.create_task(store._sweep_for_ever())
        try:
            yield store
        finally:
            sweeping.cancel()
            await asyncio.wait([sweeping])

    @asynccontextmanager
    async def receive(self, tenant: str) -> AsyncIterator[Upload]:
        """Room for one more file of the tenant, which is filled and kept within the block, or not at all."""
        upload = Upload(self, tenant)
        try:
            self.room.require(tenant, 0, 0, files=1)
            self.room.add(tenant, 0, 1)
            upload.files = 1
            async with Incoming(self._incoming) as upload.incoming:
                yield upload
        finally:
            upload.count_no_more()

    def incoming(self) -> Incoming:
        """For what must not be lost: nothing is asked of the tenant's room."""
        return Incoming(self._incoming)

    async def keep(
        self, incoming: Incoming, tenant: str, purpose: Purpose, filename: str, lifetime: int | None, file_id: str
    ) -> StoredFile:
        """Its record, from now on. Under an id that is there already nothing changes."""
        now = int(time.time())
        lasts = lifetime or self._rules.expire_s
        async with self._turn:
            name = await incoming.place(self._blobs)
            expires = now + int(lasts) if lasts else None
            file = StoredFile(file_id, tenant, name, incoming.size, now, expires, filename, purpose)
            is_new = await self._database.write(lambda to: to.execute(_ADD, astuple(file)).rowcount == 1)
        if is_new:
            self.room.add(tenant, file.bytes, 1)
        return file

    async def get(self, tenant: str, file_id: str, param: str | None = None) -> StoredFile:
        """Raises ApiError file_not_found, also where it is another tenant's."""
        values = (file_id, tenant, int(time.time()))
        rows = await self._database.read(lambda of: of.execute(_GET, values).fetchall())
        if not rows:
            raise file_not_found(file_id, param)
        return StoredFile(*rows[0])

    async def list(
        self, tenant: str, *, purpose: str | None, after: str | None, limit: int, is_rising: bool
    ) -> Sequence[StoredFile]:
        sign, order = (">", "ASC") if is_rising else ("<", "DESC")
        conditions = ["tenant = :tenant", "(expires IS NULL OR expires > :now)"]
        if purpose is not None:
            conditions.append("purpose = :purpose")
        if after is not None:
            conditions.append(f"seq {sign} (SELECT seq FROM files WHERE id = :after AND tenant = :tenant)")
        asked = f"SELECT {_COLUMNS} FROM files WHERE {' AND '.join(conditions)} ORDER BY seq {order} LIMIT :limit"
        values = {"tenant": tenant, "purpose": purpose, "after": after, "limit": limit, "now": int(time.time())}
        return [StoredFile(*row) for row in await self._database.read(lambda of: of.execute(asked, values).fetchall())]

    async def delete(self, tenant: str, file_id: str) -> None:
        file = await self.get(tenant, file_id)
        await self._remove(file)

    async def read(self, file: StoredFile) -> bytes:
        """All of it. Raises ApiError file_not_found where it has gone meanwhile."""
        try:
            return await asyncio.to_thread(self.path(file.hash).read_bytes)
        except FileNotFoundError:
            raise file_not_found(file.id) from None

    def path(self, name: str) -> Path:
        """Of the bytes with this hash."""
        return blob(self._blobs, name)

    async def let_go(self, name: str) -> None:
        """Bytes that somebody needed and does not need any more."""
        async with self._turn:
            needed = await self._database.read(lambda of: of.execute(_NEEDED, {"hash": name}).fetchone())
            if needed is None:
                await asyncio.to_thread(self.path(name).unlink, missing_ok=True)

    async def sweep(self) -> None:
        """Removes what has expired."""
        asked = f"SELECT {_COLUMNS} FROM files WHERE expires <= ?"
        now = int(time.time())
        for row in await self._database.read(lambda of: of.execute(asked, (now,)).fetchall()):
            await self._remove(StoredFile(*row))

    async def _remove(self, file: StoredFile) -> None:
        gone = "DELETE FROM files WHERE id = ?"
        if await self._database.write(lambda of: of.execute(gone, (file.id,)).rowcount):
            self.room.add(file.tenant, -file.bytes, -1)
            await self.let_go(file.hash)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._rules.sweep_s)
            with suppress(OSError, FilesAwayError):  # what is left goes the next time
                await self.sweep()

    async def _start(self) -> None:
        def known(of: sqlite3.Connection) -> tuple[list[Any], set[str]]:
            sums = of.execute("SELECT tenant, sum(bytes), count(*) FROM files GROUP BY tenant").fetchall()
            asked = "SELECT hash FROM files UNION SELECT input_hash FROM batches WHERE ended IS NULL"
            return sums, {name for (name,) in of.execute(asked)}

        sums, needed = await self._database.write(known)
        for tenant, size, files in sums:
            self.room.add(tenant, size, files)
        await asyncio.to_thread(self._clean, needed)

    def _clean(self, needed: set[str]) -> None:
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(mode=0o700)
        self._blobs.mkdir(mode=0o700, exist_ok=True)
        for path in self._blobs.glob("??/*"):
            if path.name not in needed:
                path.unlink()


class Upload:
    """A client's file on its way: counted from its first byte."""

    incoming: Incoming

    def __init__(self, store: FileStore, tenant: str) -> None:
        self._store, self._tenant = store, tenant
        self.counted = self.files = 0

    async def write(self, data: bytes) -> None:
        """Raises ApiError file_too_large, file_quota_exceeded, files_full."""
        self._store.room.require(self._tenant, self.counted, len(data))
        self._store.room.add(self._tenant, len(data), 0)
        self.counted += len(data)
        await self.incoming.write(data)

    async def keep(self, purpose: Purpose, filename: str, lifetime: int | None) -> StoredFile:
        file = await self._store.keep(self.incoming, self._tenant, purpose, filename, lifetime, new_file_id())
        self.count_no_more()  # it counts as one that is kept
        return file

    def count_no_more(self) -> None:
        self._store.room.add(self._tenant, -self.counted, -self.files)
        self.counted = self.files = 0


@contextmanager
def owned(folder: Path) -> Iterator[Path]:
    """The folder, made where it is missing, for one gateway alone. Raises ConfigError."""
    number = -1
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, mode=0o600)
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        raise ConfigError(f"files.folder: {folder} is in use by another gateway; give each its own") from None
    except OSError as error:
        raise ConfigError(f"files.folder: {folder} cannot be used: {os.strerror(error.errno or 0)}") from None
    try:
        yield folder
    finally:
        os.close(number)
