"""Runs Python programs that use vLLM, and imports vLLM once: a fork of one process each. Knows processes; no engine.

`Host.run("-m", "tests.plan.full_size", ...)` is `python -m tests.plan.full_size ...` without the ten seconds and more
of the import. Host and process speak JSON lines: {"arguments": [...], "environment": {...}, "timeout": SECONDS,
"stdout": FILE, "stderr": FILE} in, {"status": N} out when every process of that run has ended or been killed.
"""

import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[1]
LOCAL = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
GROUP_TIMEOUT = 15  # seconds for the processes of a finished program to go
TOO_LONG, LEFT_BEHIND = 98, 99  # in place of an exit status


@dataclass(frozen=True, slots=True)
class Ran:
    status: int
    stdout: str
    stderr: str


class Host:
    """The process that forks; started with the first program."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.communicate(timeout=30)  # closes its input, which ends it

    def run(self, *arguments: str, timeout: float = 240, **environment: str) -> Ran:
        """`-m MODULE ...` or `-c CODE ...`, with these variables beside the host's own."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        asked = {"arguments": arguments, "environment": environment, "timeout": timeout}
        status = self._ask(json.dumps(asked | {"stdout": str(out), "stderr": str(err)}))
        return Ran(status, *(file.read_text(encoding="utf-8", errors="replace") for file in (out, err)))

    def _ask(self, line: str) -> int:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.vllm_host"],
                cwd=ROOT,
                env=os.environ | LOCAL,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(json.loads(self._process.stdout.readline())["status"])


def main() -> None:
    # What takes ten seconds and more; an engine's state comes with its first use.
    import vllm.entrypoints.cli.main
    import vllm.model_executor.models.deepseek_v2
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401

    gc.freeze()  # else each fork's end looks through all of it, and so copies it: two seconds
    sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        asked = json.loads(line)
        timeout = asked.pop("timeout")
        child = os.fork()
        if child == 0:
            sys.exit(begin(**asked))  # by the interpreter's own end: it is what stops an engine's processes
        print(json.dumps({"status": ended(child, timeout)}), flush=True)


def ended(child: int, timeout: float) -> int:
    """Exit status of a child whose whole group is gone."""
    deadline = time.monotonic() + timeout
    try:
        while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                return TOO_LONG
            time.sleep(0.05)
        return os.waitstatus_to_exitcode(found[1]) if group_ends(child) else LEFT_BEHIND
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)


def begin(arguments: Sequence[str], environment: dict[str, str], stdout: str, stderr: str) -> int:
    """The exit status; in a process group of its own."""
    os.setsid()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, stdout), (2, stderr)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    try:
        perform(*arguments)
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def perform(kind: str, program: str, *arguments: str) -> None:
    """As the interpreter's command line does."""
    sys.argv = [kind, *arguments]
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(program, {"__name__": "__main__"})


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
