"""The folder of files across restarts: what was told is kept, what a crash left is gone, one gateway has it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from kimi_serve.errors import ConfigError
from kimi_serve.gateway.archive import Archive
from kimi_serve.gateway.files.database import FilesAwayError
from kimi_serve.gateway.files.records import StoredFile
from kimi_serve.gateway.settings import Settings, read


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read(None, files={"folder": tmp_path / "deep" / "files"})


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Archive]:
    async with Archive.opened(settings) as archive:
        assert archive is not None
        yield archive


async def keep(archive: Archive, data: bytes) -> StoredFile:
    async with archive.files.receive("t") as upload:
        await upload.write(data)
        return await upload.keep("user_data", "x", None)


def test_files_outlive_a_restart_and_so_does_their_count(settings: Settings) -> None:
    async def run() -> None:
        async with opened(settings) as archive:
            kept = await keep(archive, b"abc")
        async with opened(settings) as archive:
            assert await archive.files.get("t", kept.id) == kept
            assert await archive.files.read(kept) == b"abc"
            assert (archive.files.room.of("t").bytes, archive.files.room.of("t").files) == (3, 1)

    anyio.run(run)


def test_what_a_crash_left_is_removed_at_the_next_start(settings: Settings) -> None:
    async def run() -> None:
        assert settings.files.folder is not None
        async with opened(settings) as archive:
            kept = await keep(archive, b"abc")
            path = archive.files.path(kept.hash)
        orphan = path.parent.parent / "ff" / ("f" * 64)
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"bytes without a record")
        half = settings.files.folder / "incoming" / "half"
        half.write_bytes(b"an upload that broke off")
        async with opened(settings):
            assert path.read_bytes() == b"abc"
            assert not orphan.exists()
            assert not half.exists()

    anyio.run(run)


def test_an_upload_that_breaks_off_leaves_nothing(settings: Settings) -> None:
    async def run() -> None:
        async with opened(settings) as archive:
            async with archive.files.receive("t") as upload:
                await upload.write(b"abc")
                assert archive.files.room.of("t").bytes == 3
            assert archive.files.room.total.bytes == archive.files.room.total.files == 0
        assert settings.files.folder is not None
        assert list((settings.files.folder / "incoming").iterdir()) == []

    anyio.run(run)


def test_two_gateways_do_not_share_a_folder(settings: Settings) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(opened(settings))
            with pytest.raises(ConfigError, match=r"files\.folder: .* is in use by another gateway"):
                await stack.enter_async_context(opened(settings))
        async with opened(settings):
            pass

    anyio.run(run)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(ConfigError, match=r"files\.folder: .* cannot be used"):
            async with opened(read(None, files={"folder": tmp_path / "file" / "files"})):
                pass

    anyio.run(run)


def test_a_disk_that_fails_is_a_refusal_with_retry_after(settings: Settings) -> None:
    async def run() -> None:
        async with opened(settings) as archive:
            assert settings.files.folder is not None
            (settings.files.folder / "incoming").rmdir()
            with pytest.raises(FilesAwayError) as refused:
                await keep(archive, b"abc")
            assert refused.value.headers()["retry-after"] == "5"
            assert archive.files.room.total.files == 0

    anyio.run(run)
