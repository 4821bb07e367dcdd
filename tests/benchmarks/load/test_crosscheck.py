"""The other client: the same requests, and how far the figures are apart."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from benchmarks.load import crosscheck, scenarios
from benchmarks.load.crosscheck import BenchError, Check, Compared, Program, run_program
from benchmarks.load.locusts import Asked
from benchmarks.load.scenarios import ScenarioError
from tests.benchmarks.load.conftest import Stage
from tests.vllm_host import Host

MAIN = "from vllm.entrypoints.cli.main import main\nmain()"
HOST = "http://127.0.0.1:1"


def check(name: str, folder: Path, host: str = HOST, program: Program = run_program) -> Check:
    asked = Asked(host, name, scenarios.BUNDLED)
    return Check(asked, scenarios.read(name), "kimi-vl", 4.0, 3.0, folder, program)


def in_a_fork_of(host: Host) -> Program:
    """The same program without its import of vLLM."""

    def run(arguments: list[str], environment: Mapping[str, str], log: Path) -> int:
        assert Path(arguments[0]).name == "vllm"
        ran = host.run("-c", f"import sys\nsys.argv = {arguments!r}\n{MAIN}", **environment)
        log.write_text(ran.stdout + ran.stderr)
        return ran.status

    return run


def test_five_per_cent_are_the_goal() -> None:
    near, far = Compared("TTFT", 104.9, 100.0), Compared("tokens/s", 47.0, 50.0)
    assert crosscheck.verdict([near]).endswith("TTFT, +4.9 % (goal: at most 5 %): holds")
    assert crosscheck.verdict([near, far]).endswith("tokens/s, -6.0 % (goal: at most 5 %): DOES NOT HOLD")


@pytest.mark.parametrize("name", ["mixed", "agents", "document", "video"])
def test_what_the_other_client_cannot_send_is_not_compared(name: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="one part of text or images"):
        check(name, tmp_path)


def test_answers_that_it_did_not_get_are_no_result() -> None:
    with pytest.raises(BenchError, match="11 of 12 requests were answered"):
        crosscheck.theirs({"completed": 11}, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chat", "image"])
def test_both_clients_see_what_the_engine_was_told(
    name: str, stage: Callable[..., Stage], vllm_host: Host, tmp_path: Path
) -> None:
    """Against vLLM's own benchmark, whose definitions of TTFT and time per token are others' yardstick."""
    opened = stage({"ttft_s": 0.4, "itl_s": 0.03, "tokens": 32})
    found = {one.name: one for one in check(name, tmp_path, opened.front.url, in_a_fork_of(vllm_host)).run(rounds=1)}
    ttft = found["TTFT, mean, ms"]
    assert min(ttft.ours, ttft.theirs) >= 400
    asks = [json.loads(line) for line in (tmp_path / "theirs-3.jsonl").read_text().splitlines()]
    assert len(asks) == 12
    assert (tmp_path / "ours-1" / "requests.jsonl").read_text().count("\n") == 12
    # Both count what the engine says, so tokens differ by the span that they are divided by alone.
    assert found["answers, tokens/s"].ours / found["answered, requests/s"].ours == pytest.approx(32)
    assert found["answers, tokens/s"].theirs / found["answered, requests/s"].theirs == pytest.approx(32)
