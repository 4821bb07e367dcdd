"""`kimi-serve batch --model`: a server that lives as long as the batch, in real processes; only vLLM is a stand-in."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gateway.batches.conftest import chat_body, lines_of
from tests.launch.test_up import processes_mentioning

LINES = 40


class Batch:
    """One input, as often as it takes."""

    def __init__(self, checkpoint: Path, vllm: Path, folder: Path) -> None:
        self.input, self.output, self.mark = folder / "in.jsonl", folder / "out.jsonl", f"mark-of-{folder}"
        self.input.write_bytes(lines_of([chat_body(f"Number {number}", model=None) for number in range(LINES)]))
        self._argv = [sys.executable, "-m", "kimi_serve.cli", "batch", str(self.input), str(self.output)]
        self._argv += ["--model", str(checkpoint), "--vllm", str(vllm), "--concurrency", "2", "--attempts", "1"]
        self._environ = {**os.environ, "MARK": self.mark, "XDG_STATE_HOME": str(folder)}

    def start(self, mode: str, *options: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self._argv, *options],
            env={**self._environ, "FAKE_VLLM": mode},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, mode: str, *options: str) -> tuple[int, str]:
        process = self.start(mode, *options)
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors

    def answered(self) -> list[str]:
        """The names of the lines with a good answer, in order; each as often as it has one."""
        told = [json.loads(line) for line in self.output.read_bytes().splitlines()]
        return sorted(line["custom_id"] for line in told if line["response"]["status_code"] == 200)

    def left(self) -> list[int]:
        return processes_mentioning(self.mark)


@pytest.fixture
def batch(checkpoint: Path, vllm: Path, tmp_path: Path) -> Batch:
    return Batch(checkpoint, vllm, tmp_path)


def test_the_server_lives_as_long_as_the_batch(batch: Batch) -> None:
    status, errors = batch.run("answers", "--max-model-len", "4096")
    assert (status, f"{LINES}/{LINES}, 0 failed" in errors) == (0, True), errors
    assert batch.answered() == sorted(f"line-{number}" for number in range(LINES))
    assert batch.left() == []


def test_a_wrong_line_is_told_before_a_server_is_started(batch: Batch) -> None:
    with batch.input.open("a") as file:
        file.write("no JSON\n")
    status, errors = batch.run("answers")
    assert (status, f"line {LINES + 1}: " in errors) == (1, True), errors
    assert not batch.output.exists()
    assert not list(batch.input.parent.glob("kimi_serve/*.log"))


def test_an_engine_that_dies_ends_the_batch_and_the_next_run_goes_on(batch: Batch) -> None:
    status, errors = batch.run("answers 9")
    assert (status, "the engine ended with code 7" in errors) == (1, True), errors
    assert batch.left() == []
    before = batch.answered()
    assert 0 < len(before) < LINES
    batch.run("answers")
    assert set(before) < set(batch.answered())
    assert len(batch.answered()) == len(set(batch.answered()))
    assert batch.left() == []


def test_a_signal_stops_batch_and_server(batch: Batch) -> None:
    process = batch.start("answers")
    while not batch.output.exists() or not batch.answered():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert batch.left() == []
    assert batch.run("answers")[0] == 0
    assert batch.answered() == sorted(f"line-{number}" for number in range(LINES))
