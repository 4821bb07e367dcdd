"""Runs batches from wherever they stand to their end. Knows order, pauses and ends; not how a line is asked.

What is under way in memory can be lost at any moment: every step begins with what the store says, and ends in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from kimi_serve.gateway.archive import Archive
from kimi_serve.gateway.batches import lines, results
from kimi_serve.gateway.batches.asking import Asker
from kimi_serve.gateway.batches.lines import Line
from kimi_serve.gateway.batches.outputs import write_outputs
from kimi_serve.gateway.batches.patience import LONGEST_PAUSE_S, Answer, Patience
from kimi_serve.gateway.batches.records import Batch, Problem, Usage
from kimi_serve.gateway.files.database import FilesAwayError
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.protocol.errors import ApiError

_FORGETS_EVERY_S: Final = 3600.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Run:
    """A batch's lines under way."""

    batch: Batch
    paused_until: float = 0.0  # of the loop's clock: a refusal with Retry-After is meant for all its lines
    limit: asyncio.Timeout | None = None  # the window's end, or now where it is cancelled
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Runner:
    """`async with Runner(gateway, archive, asker) as runner:`; goes on with what an earlier process left."""

    def __init__(self, gateway: Gateway, archive: Archive, asker: Asker) -> None:
        self._gateway, self._archive, self._asker = gateway, archive, asker
        self._rules = gateway.settings.batches
        self._places = asyncio.Semaphore(self._rules.concurrency)  # first come first served, so batches take turns
        self._runs: dict[str, _Run] = {}
        self._forgetting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for batch in await self._archive.batches.under_way():
            self.start(batch)
        self._forgetting = asyncio.create_task(self._forget_for_ever())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        tasks = [task for task in (self._forgetting, *(run.task for run in self._runs.values())) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def start(self, batch: Batch) -> None:
        run = self._runs[batch.id] = _Run(batch)
        # In a context of its own: the one of now belongs to whoever made the batch, and is over with the answer.
        run.task = asyncio.get_running_loop().create_task(self._run(run), context=Context())
        self._count()

    def cancelled(self, batch_id: str) -> None:
        """The store says so already."""
        run = self._runs.get(batch_id)
        if run is not None and run.limit is not None and not run.limit.expired():
            run.limit.reschedule(asyncio.get_running_loop().time())

    async def _run(self, run: _Run) -> None:
        is_over = False
        try:
            while not is_over:
                try:
                    await self._to_its_end(run)
                    is_over = True
                except* FilesAwayError:  # what was not kept is done again
                    await asyncio.sleep(LONGEST_PAUSE_S)
        finally:
            del self._runs[run.batch.id]
            self._count()

    async def _to_its_end(self, run: _Run) -> None:
        batches, files = self._archive.batches, self._archive.files
        batch = await batches.get(run.batch.tenant, run.batch.id)
        if batch.status == "validating":
            batch = await self._validated(batch)
        if batch.status == "in_progress":
            run.batch = batch
            await self._ask_all(run)
        if batch.ended is None:
            ending = await batches.finalize(batch)
            made = await write_outputs(batch, ending, self._archive)
            await batches.end(batch, ending, has_output=made.has_output, has_errors=made.has_errors)
            logger.info("batch ended", extra={"batch": batch.id, "status": ending, "tenant": batch.tenant})
        await files.let_go(batch.input_hash)

    async def _validated(self, batch: Batch) -> Batch:
        """With its lines, or failed."""
        settings, batches = self._gateway.settings, self._archive.batches
        limits = lines.Limits(self._rules.max_lines, settings.body.max_bytes)
        path = self._archive.files.path(batch.input_hash)
        try:
            found, problems = await asyncio.to_thread(lines.read, path, batch.endpoint, limits)
        except FileNotFoundError:  # it was deleted in the moment in which the batch was made
            found, problems = [], [Problem("file_not_found", "the input file was deleted", param="input_file_id")]
        except OSError:
            raise FilesAwayError from None
        if not problems:
            return await batches.begin(batch, found)
        await batches.fail(batch, problems)
        logger.info("batch failed", extra={"batch": batch.id, "problems": len(problems), "tenant": batch.tenant})
        return await batches.get(batch.tenant, batch.id)

    async def _ask_all(self, run: _Run) -> None:
        """Returns when all have answers, the window is over, or the batch is cancelled."""
        left = await self._archive.batches.unanswered(run.batch)
        try:
            async with asyncio.timeout(run.batch.expires - time.time()) as run.limit:
                now = await self._archive.batches.get(run.batch.tenant, run.batch.id)
                if now.status == "in_progress":  # else it was cancelled in the moment before `run.limit` was there
                    await self._with_workers(run, left)
        except TimeoutError:
            logger.info("batch stopped", extra={"batch": run.batch.id, "tenant": run.batch.tenant})
        finally:
            run.limit = None

    async def _with_workers(self, run: _Run, left: Sequence[Line]) -> None:
        waiting = iter(left)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self._rules.concurrency, len(left))):
                tasks.create_task(self._work(run, waiting))

    async def _work(self, run: _Run, waiting: Iterator[Line]) -> None:
        for line in waiting:
            answer, name = await self._answered(run, line)
            batch = run.batch
            told = results.answered(batch.id, line.number, line.custom_id, answer.status, name, answer.body)
            await self._keep(
                batch, line, told, results.usage_of(batch.endpoint, answer.body), is_good=answer.status == 200
            )

    async def _keep(self, batch: Batch, line: Line, result: bytes, usage: Usage, *, is_good: bool) -> None:
        """An answer that was paid for is not given up because the disk is full for a while."""
        while True:
            try:
                await self._archive.batches.answer(batch, line.number, result, usage, is_good=is_good)
            except FilesAwayError:
                await asyncio.sleep(LONGEST_PAUSE_S)
            else:
                self._gateway.metrics.batch_lines.labels("completed" if is_good else "failed").inc()
                return

    async def _answered(self, run: _Run, line: Line) -> tuple[Answer, str]:
        """The answer that counts, and the id of its request: as often as it takes, while somebody says to come back."""
        loop, asked = asyncio.get_running_loop(), 0
        patience = Patience(self._rules.attempts, self._rules.retry_s)
        while True:
            while (left_s := run.paused_until - loop.time()) > 0:
                await asyncio.sleep(left_s)
            async with self._places:
                asked += 1
                name = f"{run.batch.id}-{line.number}-{asked}"
                answer = await self._ask(run.batch, line, name)
            pause_s = patience.pause(answer)
            if pause_s is None:
                return answer, name
            self._gateway.metrics.batch_retries.inc()
            run.paused_until = max(run.paused_until, loop.time() + pause_s)

    async def _ask(self, batch: Batch, line: Line, name: str) -> Answer:
        path = self._archive.files.path(batch.input_hash)
        try:
            body = await asyncio.to_thread(lines.body_of, path, line.start, line.length)
        except OSError:
            raise FilesAwayError from None
        return await self._asker.ask(batch.endpoint, batch.key, body, name)

    def _count(self) -> None:
        self._gateway.metrics.batches.set(len(self._runs))

    async def _forget_for_ever(self) -> None:
        while True:
            with suppress(ApiError):  # what is left goes the next time
                await self._archive.batches.forget(time.time() - self._rules.keep_s)
            await asyncio.sleep(_FORGETS_EVERY_S)
