"""What the store of batches promises whoever runs them."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from kimi_serve.gateway.archive import Archive
from kimi_serve.gateway.batches.lines import Line
from kimi_serve.gateway.batches.outputs import write_outputs
from kimi_serve.gateway.batches.records import Batch, Usage
from kimi_serve.gateway.settings import read
from kimi_serve.protocol.errors import ApiError

LINES = [Line(1, "a", 0, 5), Line(3, "b", 6, 5), Line(4, "c", 12, 5)]


def new(number: int = 0, tenant: str = "t") -> Batch:
    now = int(time.time())
    return Batch(
        f"batch_{number}", tenant, None, "/v1/chat/completions", "file-in", "0" * 64, "24h", {"a": "b"}, None,
        f"file-out{number}", f"file-err{number}", "validating", now, now + 60, None, {}, None, 0, 0, 0, False, False,
    )  # fmt: skip


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[Archive]:
    async with Archive.opened(read(None, files={"folder": tmp_path / "files"})) as archive:
        assert archive is not None
        yield archive


def test_a_line_has_one_answer_whoever_brings_a_second(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path) as archive:
            store = archive.batches
            await store.add(new(), most=1)
            batch = await store.begin(new(), LINES)
            await store.answer(batch, 3, b"first", Usage(5, 1, 2), is_good=True)
            await store.answer(batch, 3, b"second", Usage(5, 1, 2), is_good=False)
            now = await store.get("t", batch.id)
            assert (now.status, now.total, now.completed, now.failed) == ("in_progress", 3, 1, 0)
            assert (now.input_tokens, now.cached_tokens, now.output_tokens, now.reasoning_tokens) == (5, 1, 2, 0)
            assert [line.number for line in await store.unanswered(batch)] == [1, 4]
            assert (3, "b", b"first", 1) in await store.results(batch, 0, 10)

    anyio.run(run)


def test_files_that_are_written_twice_are_the_same(tmp_path: Path) -> None:
    """As after a crash between a file and the batch's end."""

    async def run() -> None:
        async with opened(tmp_path) as archive:
            store, files = archive.batches, archive.files
            await store.add(new(), most=1)
            batch = await store.begin(new(), LINES)
            await store.answer(batch, 1, b'{"good":1}\n', Usage(), is_good=True)
            await store.answer(batch, 4, b'{"bad":1}\n', Usage(), is_good=False)
            for _ in range(2):
                assert await store.finalize(batch) == "expired"
                made = await write_outputs(batch, "expired", archive)
                assert made.has_output
                assert made.has_errors
            await store.end(batch, "expired", has_output=True, has_errors=True)
            output, errors = await files.get("t", "file-out0"), await files.get("t", "file-err0")
            assert await files.read(output) == b'{"good":1}\n'
            never, bad = (await files.read(errors)).splitlines()
            assert bad == b'{"bad":1}'
            assert json.loads(never)["error"]["code"] == "batch_expired"
            assert files.room.of("t").files == 2
            assert await store.results(batch, 0, 10) == []

    anyio.run(run)


def test_what_was_cancelled_while_it_was_read_has_no_lines(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path) as archive:
            store = archive.batches
            await store.add(new(), most=1)
            assert (await store.cancel("t", "batch_0")).status == "cancelling"
            assert (await store.cancel("t", "batch_0")).status == "cancelling"
            batch = await store.begin(new(), LINES)
            assert (batch.status, batch.total) == ("cancelling", 0)
            assert await store.finalize(batch) == "cancelled"

    anyio.run(run)


def test_what_ended_long_ago_is_forgotten_and_nothing_else(tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path) as archive:
            store = archive.batches
            for number in range(2):
                await store.add(new(number), most=5)
            await store.end(new(0), "completed", has_output=False, has_errors=False)
            await store.forget(time.time() - 60)
            assert len(await store.list("t", after=None, limit=5)) == 2
            await store.forget(time.time() + 60)
            assert [batch.id for batch in await store.list("t", after=None, limit=5)] == ["batch_1"]
            with pytest.raises(ApiError) as refused:
                await store.add(new(2), most=1)
            assert refused.value.code == "too_many_batches"

    anyio.run(run)
