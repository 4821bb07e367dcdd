"""Phases told from vLLM's own log lines."""

import io
from pathlib import Path

import pytest

from kimi_serve.launch.progress import Progress, last_lines, phase_of


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("(APIServer pid=1) INFO [utils.py] non-default args: {'port': 1}", "reading the configuration"),
        (
            "(EngineCore pid=2) INFO [core.py] Initializing a V1 LLM engine (v0.32.0) with config",
            "starting the engine process",
        ),
        ("(Worker pid=3) INFO [gpu_model_runner.py] Starting to load model /x...", "loading weights"),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2", "loading weights (50 %)"),
        ("(Worker pid=3) INFO Warming up model for the compilation...", "compiling for this machine"),
        ("(APIServer pid=1) INFO:     Application startup complete.", "opening the port"),
        ("something else", None),
    ],
)
def test_a_log_line_names_its_phase(line: str, phase: str | None) -> None:
    assert phase_of(line) == phase


def test_elsewhere_than_on_a_terminal_a_phase_is_one_line(tmp_path: Path) -> None:
    log, out = tmp_path / "log", io.StringIO()
    log.write_text("Starting to load model x\n")
    shown = Progress(log, out)
    shown.tick()
    shown.tick()
    with log.open("a") as more:
        more.write("Loading safetensors checkpoint shards: 100%\rWarming up model\n")
    shown.tick()
    assert [line.partition("] ")[2] for line in out.getvalue().splitlines()] == [
        "loading weights",
        "compiling for this machine",
    ]


def test_the_last_lines_survive_bytes_that_are_no_text(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\ntwo \xff\nthree\n")
    assert last_lines(log, 2).splitlines()[-1] == "three"
