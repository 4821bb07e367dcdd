"""Starts locust for one run and waits for its end. Knows its command line; not what the run found."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.load.feed import ROOT
from benchmarks.load.records import Run, load
from benchmarks.overhead import commit

LOCUSTFILE: Final = Path("benchmarks") / "locustfile.py"
LOG: Final = "locust.log"
_SOME_FAILED: Final = 1  # how locust says it


class LocustError(RuntimeError):
    """The run did not take place."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Where, and what instead of the scenario's own."""

    host: str
    scenario: str
    scenarios: Path
    key: str | None = None
    model: str | None = None
    most_open: int = 4096

    def run(self, out: Path, **more: object) -> Run:
        """more: further options of locustfile.py, by name; None is left out. Raises LocustError."""
        out.mkdir(parents=True, exist_ok=True)
        chosen = {"scenario": self.scenario, "scenarios": self.scenarios.resolve(), "model": self.model, **more}
        chosen |= {"out": out.resolve(), "host": self.host, "most_open": self.most_open, "commit": commit()}
        command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
        command += ["--csv", str(out.resolve() / "locust"), "--logfile", str(out.resolve() / LOG)]
        for name, value in chosen.items():
            if value is not None:
                command += [f"--{name.replace('_', '-')}", str(value)]
        keys = {} if self.key is None else {"OPENAI_API_KEY": self.key}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **keys}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, _SOME_FAILED):
            log = (out / LOG).read_text() if (out / LOG).exists() else ""
            raise LocustError(f"locust ended with {done.returncode}:\n{(log + done.stderr)[-2000:]}")
        return load(out)
