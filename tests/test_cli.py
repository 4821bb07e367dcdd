"""The command line as a person meets it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kimi_serve import cli

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "checkpoint"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN, directory)
    (directory / "model.safetensors").write_bytes(bytes(1024))
    return directory


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert cli.main(["engine", *map(str, arguments), "--dry-run"]) == 0
    argv: list[str] = json.loads(capsys.readouterr().out)["argv"]
    return argv


def test_a_flag_of_vllm_passes_through(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = dry_run(capsys, checkpoint, "--max-num-seqs", "3", "--enable-log-requests")
    assert argv[-3:] == ["--max-num-seqs", "3", "--enable-log-requests"]


def test_the_value_of_a_flag_is_never_taken_for_the_model() -> None:
    assert cli.split_model(["--max-model-len", "4096"]) == (None, ["--max-model-len", "4096"])
    assert cli.split_model(["dir", "--max-model-len", "4096"]) == ("dir", ["--max-model-len", "4096"])


def test_a_dry_run_is_one_json_line(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engine", "--dry-run", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert set(json.loads(out)) == {"argv", "environment", "notes"}


def test_a_missing_directory_is_an_error_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["engine", "/nowhere/at/all", "--dry-run"]) == 1
    assert capsys.readouterr().err == "kimi-serve engine: error: MODEL: /nowhere/at/all is not a directory\n"


def test_engine_becomes_vllm_and_returns_its_exit_code(checkpoint: Path, tmp_path: Path) -> None:
    vllm = tmp_path / "vllm"
    vllm.write_text('#!/bin/sh\necho "$1 $2 usage=$VLLM_NO_USAGE_STATS"\nexit 7\n')
    vllm.chmod(0o755)
    command = [sys.executable, "-m", "kimi_serve.cli", "engine", checkpoint, "--vllm", vllm]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 7
    assert shown.stdout == f"serve {checkpoint} usage=1\n"
    assert f"serve {checkpoint}" in shown.stderr


@pytest.mark.parametrize("verb", ["engine", "up", "doctor", "quantize", "plan"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert verb in capsys.readouterr().out


def test_an_option_that_doctor_does_not_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--jsno"]) == 1
    assert "--jsno" in capsys.readouterr().err


def test_the_readme_names_every_verb() -> None:
    verbs = cli.build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert verbs is not None
    assert [verb for verb in verbs if f"kimi-serve {verb}" not in (ROOT / "README.md").read_text()] == []


def test_make_alone_lists_every_target() -> None:
    # Not as the child of the make that runs the tests: a nested make announces the folders that it enters.
    alone = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    listed = subprocess.run(["make"], cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    assert {line.split()[1] for line in listed.splitlines()} == set(targets[1].split())
