"""A batch's output and error files, from its lines' results. Knows their order; asks nobody.

Their ids were chosen with the batch and the lines are in the order of the input: written a second time after a crash
they are the same files.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from kimi_serve.gateway.archive import Archive
from kimi_serve.gateway.batches import results
from kimi_serve.gateway.batches.records import Batch, Ending
from kimi_serve.gateway.files.incoming import Incoming

_AT_ONCE: Final = 256  # lines


@dataclass(frozen=True, slots=True)
class Made:
    has_output: bool
    has_errors: bool


async def write_outputs(batch: Batch, ending: Ending, archive: Archive) -> Made:
    """Good answers in one file, all others in another; a file that would be empty is not made."""
    async with AsyncExitStack() as stack:
        output = await stack.enter_async_context(archive.files.incoming())
        errors = await stack.enter_async_context(archive.files.incoming())
        last = -1
        while rows := await archive.batches.results(batch, last, _AT_ONCE):
            good: list[bytes] = []
            bad: list[bytes] = []
            for number, custom_id, result, is_good in rows:
                told = result or results.never_answered(batch.id, number, custom_id, ending)
                (good if is_good else bad).append(told)
                last = number
            await output.write(b"".join(good))
            await errors.write(b"".join(bad))
        await _keep(archive, batch, output, batch.output_file, "output")
        await _keep(archive, batch, errors, batch.error_file, "errors")
        return Made(output.size > 0, errors.size > 0)


async def _keep(archive: Archive, batch: Batch, incoming: Incoming, file_id: str, kind: str) -> None:
    if incoming.size:
        name = f"{batch.id}_{kind}.jsonl"
        await archive.files.keep(incoming, batch.tenant, "batch_output", name, batch.output_expires, file_id)
