"""`kimi-serve plan` as a person and a machine meet it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from kimi_serve import cli

ROOT = Path(__file__).parents[2]
REQUEST = ["--text", "500", "--image", "1920x1080x3", "--page", "1240x1754x20", "--max-tokens", "2000"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["plan", *arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err


def test_without_a_model_the_bundled_one_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(capsys).startswith("kimi-vl-nano: ")


def test_the_tables_name_the_request_the_weights_and_the_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(capsys, "--preset", "thinking-2506", *REQUEST)
    for line in ("prompt", "context 131,072: fits", "latent: on GPUs and AMX", "int4 (128)", "H100 NVL", "allowance"):
        assert line in shown
    assert max(map(len, shown.splitlines())) <= 160


def test_json_is_one_line_with_the_same_figures(capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan(capsys, "--preset", "thinking-2506", *REQUEST, "--json")
    assert shown.count("\n") == 1
    found = json.loads(shown)
    pictures = 3 * (2_691 + 4) + 20 * (2_835 + 4)
    assert found["request"]["prompt_tokens"] == 16 + 500 + pictures
    assert found["request"]["fits"] is True
    assert found["kv"]["latent"] == 131_072 * 31_104
    assert [each["scheme"] for each in found["schemes"]] == ["bf16", "int8", "int4"]
    per_gpu = found["schemes"][0]["per_gpu"]
    assert per_gpu["total"] == sum(part["nbytes"] for part in per_gpu["parts"]) + per_gpu["cache"]


def test_a_request_that_does_not_fit_is_said_and_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", "instruct", "--text", "131072"]
    assert "does not fit: the prompt's 131088 tokens and one token" in plan(capsys, *arguments)
    assert json.loads(plan(capsys, *arguments, "--json"))["request"]["fits"] is False


def test_one_gpu_is_shown_alone(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(plan(capsys, "--preset", "instruct", "--gpu", "l40s", "--scheme", "int8", "--json"))
    ((scheme,)) = shown["schemes"]
    assert [gpu["name"] for gpu in scheme["gpus"]] == ["L40S"]


def test_a_scheme_that_cannot_be_shared_says_why_beside_those_that_can(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", "instruct", "--tensor-parallel", "8"]
    assert "8 GPUs share the 1408 inputs of" in plan(capsys, *arguments)
    schemes = json.loads(plan(capsys, *arguments, "--json"))["schemes"]
    assert ["impossible" in each for each in schemes] == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "instruct", "somewhere"], "two models"),
        (["/nowhere/at/all"], "is not a directory"),
        (["--image", "640"], "--image: '640' is not supported; expected WxH or WxHxN"),
        (["--text", "-1"], "--text: -1 is not supported; expected at least 0"),
        (["--concurrency", "0"], "--concurrency: 0 is not supported; expected at least 1"),
        (["--context", "9999999"], "--context: 9999999 is more than the model's 131072 positions"),
        (["--gpu", "h100", "--gpu-memory", "80"], "give one of them"),
        (["--gpu-memory", "0"], "--gpu-memory: 0 is not supported"),
        (["--gpu-memory", "nan"], "--gpu-memory: nan is not supported"),
        (["--gpu-memory-utilization", "92"], "--gpu-memory-utilization: 92 is not supported"),
        (["--scheme", "int8", "--group-size", "64"], "--group-size: 64 without --scheme int4"),
        (["--scheme", "int4", "--group-size", "128"], "--group-size: 128 does not divide"),
        (["--chart", "plan.pdf"], "--chart: plan.pdf is not supported; expected a name that ends in .png"),
        (["--chart", "/nowhere/at/all/plan.png"], "--chart: /nowhere/at/all is not a directory"),
        (["--jsno"], "--jsno: not an option of plan"),
    ],
)
def test_what_is_not_supported_is_an_error_of_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *arguments)


def test_a_chart_is_drawn_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "plan.png"
    plan(capsys, "--preset", "instruct", "--chart", str(target))
    assert target.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_matplotlib_a_chart_is_an_error_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "--chart: matplotlib is not installed" in refused(capsys, "--chart", str(tmp_path / "plan.png"))


def test_a_plan_loads_neither_an_engine_nor_matplotlib() -> None:
    code = (
        "import sys; from kimi_serve import cli; cli.main(['plan', '--preset', 'instruct']); "
        "print(*sorted({'torch', 'vllm', 'transformers', 'matplotlib'} & sys.modules.keys()), 'end')"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "end"
