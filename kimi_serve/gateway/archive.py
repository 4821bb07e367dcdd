"""What the gateway keeps on disk: files and batches in one folder, where one is set. Knows how they are opened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from kimi_serve.gateway.batches.store import BatchStore
from kimi_serve.gateway.files.database import database
from kimi_serve.gateway.files.store import FileStore, owned
from kimi_serve.gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class Archive:
    files: FileStore
    batches: BatchStore

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings) -> AsyncIterator[Archive | None]:
        """None where no folder is set. Raises ConfigError where it cannot be used."""
        if settings.files.folder is None:
            yield None
            return
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(owned(settings.files.folder))
            opened = await stack.enter_async_context(database(folder / "archive.sqlite"))
            files = await stack.enter_async_context(FileStore.opened(folder, opened, settings.files))
            yield cls(files, BatchStore(opened))
