"""The same requests by `vllm bench serve`, in turns with ours, and how far the figures are apart. Judges no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

from benchmarks.load.conversations import converse
from benchmarks.load.locusts import Asked
from benchmarks.load.scenarios import ImagesPart, Scenario, ScenarioError, TextPart
from benchmarks.load.summary import Summary, summarize
from benchmarks.load.tables import Row

GOAL_PERCENT: Final = 5.0
LONGEST_S: Final = 3600.0
_WARM_UP_S: Final = 3.0


class BenchError(RuntimeError):
    """vllm bench serve did not end well."""


Program = Callable[[list[str], Mapping[str, str], Path], int]  # arguments, environment and log to an exit status


def run_program(arguments: list[str], environment: Mapping[str, str], log: Path) -> int:
    """The exit status."""
    with log.open("wb") as said:
        return subprocess.run(
            arguments, stdout=said, stderr=said, env={**os.environ, **environment}, timeout=LONGEST_S, check=False
        ).returncode


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure, a mean over the rounds."""

    name: str
    ours: float
    theirs: float

    @property
    def percent(self) -> float:
        return 100 * (self.ours - self.theirs) / self.theirs


@dataclass(frozen=True, slots=True)
class Check:
    """Requests come at even distances, for both; a turn has its own salt and finds no cache filled."""

    asked: Asked
    scenario: Scenario
    model: str
    rate: float
    seconds: float
    out: Path
    program: Program = run_program

    def __post_init__(self) -> None:
        if len(self.scenario.parts) != 1 or not isinstance(self.scenario.parts[0], TextPart | ImagesPart):
            raise ScenarioError("scenario: one part of text or images is expected: vllm bench serve knows no others")

    @property
    def requests(self) -> int:
        return max(1, round(self.rate * self.seconds))

    def run(self, rounds: int) -> list[Compared]:
        self._ours("warm-up", 0, _WARM_UP_S)
        ours, theirs = [], []
        for number in range(1, rounds + 1):
            ours.append(_ours(self._ours(f"ours-{number}", 2 * number, self.seconds)))
            theirs.append(self._theirs(2 * number + 1))
        return [Compared(name, mean(one[name] for one in ours), mean(one[name] for one in theirs)) for name in ours[0]]

    def _ours(self, label: str, salt: int, seconds: float) -> Summary:
        chosen = {"rate": self.rate, "seconds": seconds, "process": "constant", "salt": f"{salt:06d}"}
        summary = summarize(self.asked.run(self.out / label, label=label, **chosen))
        if summary.all.answered < summary.due:
            raise BenchError(f"ours: {summary.all.answered} of {summary.due} requests were answered: {summary.errors}")
        return summary

    def _theirs(self, salt: int) -> dict[str, float]:
        asks, result = self.out / f"theirs-{salt}.jsonl", f"theirs-{salt}.json"
        asks.write_text("".join(self._line(number, f"{salt:06d}") + "\n" for number in range(self.requests)))
        keys = {} if self.asked.key is None else {"OPENAI_API_KEY": self.asked.key}
        log = self.out / f"theirs-{salt}.log"
        status = self.program(self._command(asks, result), keys, log)
        if status:
            raise BenchError(f"vllm bench serve ended with {status}:\n{log.read_text()[-2000:]}")
        return theirs(json.loads((self.out / result).read_text()), self.requests)

    def _line(self, number: int, salt: str) -> str:
        content = converse(self.scenario, number, salt).messages[0]["content"]
        assert isinstance(content, list)
        if self._has_images:
            return json.dumps({"content": content})
        return json.dumps({"prompt": content[0]["text"], "output_tokens": self.scenario.parts[0].answer_tokens})

    @property
    def _has_images(self) -> bool:
        return isinstance(self.scenario.parts[0], ImagesPart)

    def _command(self, asks: Path, result: str) -> list[str]:
        """Their client without a tokenizer: the server counts, and the length of answers is in the body, as in ours."""
        body = {"max_completion_tokens": self.scenario.parts[0].answer_tokens, "temperature": 0}
        dataset = "custom_image" if self._has_images else "custom"
        command = [str(Path(sys.executable).with_name("vllm")), "bench", "serve", "--backend", "openai-chat"]
        command += ["--base-url", self.asked.host.rstrip("/").removesuffix("/v1"), "--endpoint", "/v1/chat/completions"]
        command += ["--model", self.model, "--skip-tokenizer-init", "--dataset-name", dataset]
        command += ["--dataset-path", str(asks), "--disable-shuffle", "--skip-chat-template", "--no-oversample"]
        command += ["--num-prompts", str(self.requests), "--request-rate", str(self.rate), "--burstiness", "inf"]
        command += ["--extra-body", json.dumps(body | ({"ignore_eos": True} if self.scenario.ignore_eos else {}))]
        command += ["--ready-check-timeout-sec", "0", "--disable-tqdm"]
        return [
            *command,
            "--save-result",
            "--save-detailed",
            "--result-dir",
            str(self.out),
            "--result-filename",
            result,
        ]


def _ours(summary: Summary) -> dict[str, float]:
    found = summary.all
    assert found.ttft_ms is not None
    assert found.tpot_ms is not None, "answer_tokens: more than one is needed for a time per token"
    return {
        "TTFT, mean, ms": found.ttft_ms.mean,
        "TTFT, median, ms": found.ttft_ms.p50,
        "time per output token, mean, ms": found.tpot_ms.mean,
        "time per output token, median, ms": found.tpot_ms.p50,
        "answered, requests/s": summary.answered_per_s,
        "answers, tokens/s": summary.tokens_per_s,
    }


def theirs(told: Mapping[str, Any], requests: int) -> dict[str, float]:
    """From vLLM's own file of results: without a tokenizer it writes each request's times and sums up none of them."""
    if told["completed"] < requests:
        raise BenchError(f"vllm bench serve: {told['completed']} of {requests} requests were answered")
    ttfts = [1000 * seconds for seconds in told["ttfts"]]
    tpots = [1000 * sum(gaps) / (tokens - 1) for gaps, tokens in zip(told["itls"], told["output_lens"], strict=True)]
    return {
        "TTFT, mean, ms": mean(ttfts),
        "TTFT, median, ms": median(ttfts),
        "time per output token, mean, ms": mean(tpots),
        "time per output token, median, ms": median(tpots),
        "answered, requests/s": told["request_throughput"],
        "answers, tokens/s": told["output_throughput"],
    }


def rows(found: Sequence[Compared]) -> list[Row]:
    head: Row = ("", "ours", "vllm bench serve", "difference")
    return [head, *((one.name, f"{one.ours:.2f}", f"{one.theirs:.2f}", f"{one.percent:+.1f} %") for one in found)]


def verdict(found: Sequence[Compared]) -> str:
    worst = max(found, key=lambda one: abs(one.percent))
    holds = "holds" if abs(worst.percent) <= GOAL_PERCENT else "DOES NOT HOLD"
    return f"- furthest apart: {worst.name}, {worst.percent:+.1f} % (goal: at most {GOAL_PERCENT:g} %): {holds}"
