"""Alerts and dashboards: they name metrics that exist, each alert fires when it should, and each has its section."""

import ast
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.helm import chart
from kimi_serve.gateway.metrics import Metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
ALERTS = FOLDER / "alerts.yaml"
OPERATE = ROOT / "docs" / "operate.md"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
NAMED_IN = [ALERTS, *DASHBOARDS, chart.golden(chart.CHART / "autoscaling.yaml"), OPERATE]
_ENDINGS = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"], "info": [""]}
NEEDS_PROMTOOL = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: alert rules are not tried here"
)


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def ours() -> set[str]:
    families = Metrics().registry.collect()
    return {family.name + ending for family in families for ending in _ENDINGS[family.type]}


def theirs() -> set[str]:
    """What vLLM's own logger makes for every engine, read from its source: importing it takes a minute."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    source = Path(vllm.origin).parent / "v1" / "metrics" / "loggers.py"
    found = set()
    for call in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr.endswith("_cls"):
            kind = call.func.attr.removeprefix("_").removesuffix("_cls")
            names = [k.value.value for k in call.keywords if k.arg == "name" and isinstance(k.value, ast.Constant)]
            found |= {f"{name}{ending}" for name in names for ending in _ENDINGS[kind]}
    return found


def test_vllms_metrics_are_read_from_its_source() -> None:
    known = {"vllm:num_requests_waiting", "vllm:prompt_tokens_total", "vllm:time_to_first_token_seconds_bucket"}
    assert known <= theirs()
    assert "vllm:prompt_tokens" not in theirs()  # a counter's name as Prometheus does not export it


@pytest.mark.parametrize("file", NAMED_IN, ids=lambda file: file.name)
def test_no_rule_panel_or_autoscaler_names_a_metric_that_is_not_exported(file: Path) -> None:
    text = file.read_text("utf-8")
    named = set(re.findall(r"\b(?:kimi_serve|vllm:)[a-z0-9_]*[a-z0-9]\b", text)) - {"kimi_serve"}
    assert named
    assert named - ours() - theirs() == set()


def test_every_alert_says_what_it_means_and_points_at_its_section() -> None:
    headings = re.findall(r"^### (KimiServe\w+)$", OPERATE.read_text("utf-8"), re.MULTILINE)
    assert headings == list(rules())
    for name, rule in rules().items():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["runbook"].startswith(f"docs/operate.md#{name.lower()}: ")


@dataclass(frozen=True)
class Case:
    """series: a sample a minute, in promtool's notation. It fires at `at` minutes and not a minute earlier, or not."""

    alert: str
    series: dict[str, str]
    at: int
    labels: dict[str, str] | None  # None: it does not fire


JOB = {"job": "g"}
ENGINE = {"job": "g", "replica": "http://e:8000"}
A, B = '{job="g", instance="a"}', '{job="g", instance="b"}'
AT_A = '{job="g", instance="a", replica="http://e:8000"}'
LOW, BROKEN = '{job="g", priority="low"}', '{job="g", code="upstream_error"}'
AT_E = '{job="vllm", instance="e", engine="0"}'


def _fires(alert: str, at: int, labels: dict[str, str], series: dict[str, str]) -> Case:
    return Case(f"KimiServe{alert}", series, at, labels)


def _quiet(alert: str, at: int, series: dict[str, str]) -> Case:
    return Case(f"KimiServe{alert}", series, at, None)


def _answers(status: int) -> str:
    return f'kimi_serve_requests_total{{job="g", status="{status}"}}'


def _refused(code: str) -> str:
    return f'kimi_serve_refusals_total{{job="g", code="{code}"}}'


CASES = [
    _fires("NoEngine", 3, JOB, {f"kimi_serve_ready_replicas{A}": "2 0x10", f"kimi_serve_ready_replicas{B}": "0x10"}),
    _quiet("NoEngine", 9, {f"kimi_serve_ready_replicas{A}": "0x10", f"kimi_serve_ready_replicas{B}": "1x10"}),
    _fires("EngineNotReady", 11, ENGINE, {f"kimi_serve_replica_ready{AT_A}": "1 0x20"}),
    _quiet("EngineNotReady", 18, {f"kimi_serve_replica_ready{AT_A}": "0x9 1 0x9"}),
    _fires("EngineEjected", 23, ENGINE, {f"kimi_serve_replica_ejections_total{AT_A}": "0x20 0+2x20"}),
    _quiet("EngineEjected", 30, {f"kimi_serve_replica_ejections_total{AT_A}": "0x20 1x20"}),
    _fires("QueueIsOld", 6, JOB, {f"kimi_serve_oldest_waiting_seconds{LOW}": "0 31x10"}),
    _quiet("QueueIsOld", 9, {f"kimi_serve_oldest_waiting_seconds{LOW}": "0+30x5 0+7x4"}),
    _fires(
        "Overloaded", 6, JOB, {_answers(200): "0+90x20", _answers(503): "0+10x20", _refused("queue_full"): "0+10x20"}
    ),
    _quiet("Overloaded", 18, {_answers(200): "0+90x20", _refused("queue_full"): "0+3x20"}),
    _quiet("Overloaded", 19, {_answers(200): "0+90x20", _refused("rate_limited"): "0+30x20"}),
    _fires("Failures", 6, JOB, {_answers(200): "0+97x20", _answers(502): "0+3x20"}),
    _quiet("Failures", 18, {_answers(200): "0+97x20", _answers(429): "0+90x20", _answers(502): "0+1x20"}),
    _fires("BrokenStreams", 6, JOB, {f"kimi_serve_broken_streams_total{BROKEN}": "0+60x20"}),
    _quiet("BrokenStreams", 18, {'kimi_serve_broken_streams_total{job="g", code="draining"}': "0+60x20"}),
    _fires("Miscounts", 5, JOB, {f"kimi_serve_miscounted_prompts_total{A}": "0x4 1x20"}),
    _quiet("Miscounts", 18, {f"kimi_serve_miscounted_prompts_total{A}": "7x20"}),
    _fires("KeyStoreAway", 2, JOB, {f"kimi_serve_key_store_up{A}": "1 0x9", f"kimi_serve_key_store_up{B}": "1x10"}),
    _quiet("KeyStoreAway", 3, {f"kimi_serve_key_store_up{A}": "1 0 1x9"}),
    _fires("LimitsAreLocal", 8, JOB, {f"kimi_serve_limit_fallbacks_total{A}": "0x4 0+2x9"}),
    _quiet("LimitsAreLocal", 18, {f"kimi_serve_limit_fallbacks_total{A}": "9x20"}),
    _fires("CacheIsFull", 11, {"job": "vllm", "instance": "e"}, {f"vllm:kv_cache_usage_perc{AT_E}": "0.5 0.99x20"}),
    _quiet("CacheIsFull", 18, {f"vllm:kv_cache_usage_perc{AT_E}": "0.9x20"}),
]


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    assert {case.alert for case in CASES if case.labels is not None} == set(rules())
    assert {case.alert for case in CASES if case.labels is None} == set(rules())


@NEEDS_PROMTOOL
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}{'' if case.labels else '-quiet'}")
def test_an_alert_fires_when_it_should_and_not_a_minute_earlier(case: Case, tmp_path: Path) -> None:
    firing = [] if case.labels is None else [_alert(case)]
    asked = [{"eval_time": f"{case.at}m", "alertname": case.alert, "exp_alerts": firing}]
    if firing:
        asked.append({"eval_time": f"{case.at - 1}m", "alertname": case.alert, "exp_alerts": []})
    series = [{"series": name, "values": values} for name, values in case.series.items()]
    text = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": asked}],
    }
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump(text))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _alert(case: Case) -> dict[str, object]:
    assert case.labels is not None
    rule = rules()[case.alert]
    told = {
        name: text.replace("{{ $labels.replica }}", case.labels.get("replica", ""))
        for name, text in rule["annotations"].items()
    }
    return {"exp_labels": {**case.labels, **rule["labels"]}, "exp_annotations": told}


@NEEDS_PROMTOOL
def test_prometheus_reads_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout
