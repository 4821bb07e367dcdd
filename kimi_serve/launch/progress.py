"""What an engine is doing while it loads, told from its log. Knows vLLM's words; starts nothing."""

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

# In the order in which vLLM 0.32 writes them. A later line wins, whatever came before it.
PHASES = (
    (re.compile(r"non-default args|Starting vLLM API server"), "reading the configuration"),
    (re.compile(r"Initializing a V1 LLM engine"), "starting the engine process"),
    (re.compile(r"Starting to load model|Loading safetensors"), "loading weights"),
    (re.compile(r"Loading weights took|Model loading took"), "preparing the model"),
    (re.compile(r"Warming up model|torch\.compile|Dynamo bytecode"), "compiling for this machine"),
    (re.compile(r"KV cache size|Warming up done"), "reserving the cache"),
    (re.compile(r"Starting vLLM server|Application startup complete"), "opening the port"),
)
SHARDS = re.compile(r"Loading safetensors checkpoint shards:\s+(\d+)%")


@dataclass(slots=True)
class Progress:
    """Follows a log file, and shows one line on a terminal or one line a phase elsewhere."""

    log: Path
    out: TextIO = field(default_factory=lambda: sys.stderr)
    phase: str = "starting"
    _began: float = field(default_factory=time.monotonic)
    _offset: int = 0
    _shown: str = ""

    def tick(self) -> None:
        self._read()
        phase = self.phase.partition(" (")[0]  # a percentage is for a terminal only
        if self.out.isatty():
            self.out.write(f"\r\033[K[{self.elapsed:4.0f} s] {self.phase}")
        elif phase != self._shown:
            self.out.write(f"[{self.elapsed:4.0f} s] {phase}\n")
        self._shown = phase
        self.out.flush()

    def close(self) -> None:
        if self.out.isatty() and self._shown:
            self.out.write("\r\033[K")
            self.out.flush()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def _read(self) -> None:
        with self.log.open("rb") as log:
            log.seek(self._offset)
            text = log.read().decode("utf-8", errors="replace")
            self._offset = log.tell()
        for line in re.split(r"[\r\n]+", text):
            self.phase = phase_of(line) or self.phase


def phase_of(line: str) -> str | None:
    if shards := SHARDS.search(line):
        return f"loading weights ({shards[1]} %)"
    return next((phase for pattern, phase in reversed(PHASES) if pattern.search(line)), None)


def last_lines(log: Path, count: int = 25) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
