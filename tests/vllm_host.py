"""Runs the engine driver many times and imports vLLM once: a fork of this process each. Knows processes; no engine.

python -m tests.engine.host

One JSON line in, {"environment": {...}, "arguments": [...], "output": FILE}; one out, {"status": N}, when every process
of that run has ended or been killed.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

ENGINE_TIMEOUT = 540  # seconds for start and passes: a loaded machine of two cores takes four times an idle one's
GROUP_TIMEOUT = 15  # seconds for the processes of a finished engine to go
TOO_LONG, LEFT_BEHIND = 98, 99  # in place of an exit status


def main() -> None:
    # What takes ten seconds and more; an engine's state comes with its first use.
    import vllm.model_executor.models.deepseek_v2
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401

    from tests.engine import driver

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            sys.exit(
                drive(driver.main, **asked)
            )  # by the interpreter's own end: it is what stops an engine's processes
        print(json.dumps({"status": ended(child)}), flush=True)


def ended(child: int) -> int:
    """Exit status of a child whose whole group is gone."""
    deadline = time.monotonic() + ENGINE_TIMEOUT
    try:
        while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                return TOO_LONG
            time.sleep(0.1)
        return os.waitstatus_to_exitcode(found[1]) if group_ends(child) else LEFT_BEHIND
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def drive(run: Callable[..., None], environment: dict[str, str], arguments: list[str], output: str) -> int:
    """The exit status; in a process group of its own."""
    os.setsid()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        run(*arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def group_ends(group: int) -> bool:
    deadline = time.monotonic() + GROUP_TIMEOUT
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


if __name__ == "__main__":
    main()
