"""What becomes of many files read by processes with limits. Knows no kind of file."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from kimi_serve.gateway.expansion.workers import RefusedError, WorkerEndedError, Workers

COPIES = int(os.environ.get("KIMI_SERVE_FUZZ_FILES", "60"))
TIMEOUT = 3600 if COPIES > 200 else 300

Read = Callable[[Workers, int], Awaitable[int]]  # the pictures that the file of a number gave


def outcomes(read: Read) -> Counter[str]:
    """Of COPIES files: how many were shown, gave nothing, or ended for each reason."""
    seen: Counter[str] = Counter()

    async def one(workers: Workers, number: int) -> None:
        try:
            seen["shown" if await read(workers, number) else "nothing"] += 1
        except RefusedError as error:
            seen[error.kind] += 1
        except WorkerEndedError as error:
            seen[error.reason] += 1

    async def all_of_them() -> None:
        async with Workers(2, wait_s=3600) as workers, asyncio.TaskGroup() as tasks:
            for number in range(COPIES):
                tasks.create_task(one(workers, number))

    asyncio.run(all_of_them())
    print(dict(seen))
    assert sum(seen.values()) == COPIES
    return seen


def processes() -> list[Path]:
    """That read files, of this test's gateways."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, status = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"expansion.child" in command and int(status.rpartition(")")[2].split()[1]) == os.getpid():
            found.append(folder)
    return found
