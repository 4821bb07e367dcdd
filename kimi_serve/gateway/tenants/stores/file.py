"""Keys in a JSON file, read again when it changed. Knows how to replace it whole; knows no field."""

import asyncio
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from kimi_serve.gateway.tenants.errors import TenantsError
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.records import dumps, loads

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int]


class FileKeys:
    def __init__(self, path: Path) -> None:
        self._path = path
        # One value, since two threads may read at once: keys beside another reading's stamp would stay for ever.
        self._latest: tuple[Stamp, dict[str, Key]] | None = None
        self._refused: Stamp | None = None  # of a change that could not be read, so that it is reported once

    async def get(self, key_id: str) -> Key | None:
        return (await asyncio.to_thread(self._current)).get(key_id)

    async def all(self) -> list[Key]:
        return list((await asyncio.to_thread(self._current)).values())

    async def put(self, key: Key) -> None:
        await asyncio.to_thread(self._put, key)

    def _current(self) -> dict[str, Key]:
        """What the file says, or said last while it could be read: a slip of the editor must not lock everybody out."""
        latest, stamp = self._latest, (0, 0, 0)
        try:
            stamp = _stamp(self._path)
            if latest is None or stamp != latest[0]:
                latest = self._latest = stamp, _read(self._path)
        except TenantsError as error:
            if latest is None:
                raise
            if stamp != self._refused:
                self._refused = stamp
                logger.warning("keys file not taken, the keys before it stay", extra={"reason": str(error)})
        return latest[1]

    def _put(self, key: Key) -> None:
        with _locked(self._path.parent):
            keys = _read(self._path) if self._path.exists() else {}
            _replace(self._path, dumps({**keys, key.id: key}.values()))


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError as error:
        raise TenantsError(f"{path}: {error.strerror}; `kimi-serve keys create` makes a first key") from None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> dict[str, Key]:
    try:
        return loads(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise TenantsError(f"{path}: cannot be read: {type(error).__name__}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two who write at once would each lose the other's key. The folder is locked, so no lock file stays behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, text: str) -> None:
    """All or nothing, even if the power fails: written beside it, then renamed. A temporary file has mode 0600."""
    with NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
