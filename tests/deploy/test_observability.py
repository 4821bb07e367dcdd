"""Alerts and dashboards: they name metrics that exist, each alert fires when it should, and each has its section."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.helm import chart
from tests.deploy import exported, promql

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
ALERTS = FOLDER / "alerts.yaml"
OPERATE = ROOT / "docs" / "operate.md"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
METRICS = ROOT / "docs" / "metrics.md"
AUTOSCALING = chart.golden(chart.CHART / "autoscaling.yaml")
NAMED_IN = [ALERTS, *DASHBOARDS, AUTOSCALING, OPERATE, METRICS, ROOT / "docs" / "kubernetes.md"]
EXPORTED = exported.ours() | exported.theirs() | exported.PROMETHEUS
NEEDS_PROMTOOL = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: alert rules are not tried here"
)


def rules() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_vllms_metrics_are_read_from_its_source() -> None:
    known = {"vllm:num_requests_waiting", "vllm:prompt_tokens_total", "vllm:time_to_first_token_seconds_bucket"}
    assert known <= exported.theirs().keys()
    assert "vllm:prompt_tokens" not in exported.theirs()  # a counter's name as Prometheus does not export it
    assert exported.theirs()["vllm:num_requests_waiting"] == {"model_name", "engine"}
    assert exported.theirs()["vllm:request_success_total"] == {"model_name", "engine", "finished_reason"}


def test_the_gateways_labels_are_read_from_its_registry() -> None:
    found = exported.ours()
    assert found["kimi_serve_requests_total"] == {"route", "status", "tenant"}
    assert found["kimi_serve_waiting_requests"] == {"priority"}
    assert found["kimi_serve_replica_calls_total"] == {"replica", "outcome"}
    assert found["kimi_serve_request_duration_seconds_bucket"] == {"route", "le"}


@pytest.mark.parametrize("file", NAMED_IN, ids=lambda file: file.name)
def test_no_rule_panel_or_autoscaler_names_a_metric_that_is_not_exported(file: Path) -> None:
    text = file.read_text("utf-8")
    named = set(re.findall(r"\b(?:kimi_serve|vllm:)[a-z0-9_]*[a-z0-9]\b", text)) - {"kimi_serve"}
    assert named
    assert named - EXPORTED.keys() == set()


def queries(file: Path) -> list[tuple[str, str]]:
    """(text in which a result's labels are shown, query) of a file that has some."""
    text = file.read_text("utf-8")
    if file.suffix == ".json":
        return [(one["legendFormat"], one["expr"]) for panel in json.loads(text)["panels"] for one in panel["targets"]]
    if file == ALERTS:
        return [(" ".join(rule["annotations"].values()), rule["expr"]) for rule in rules().values()]
    if file == AUTOSCALING:
        triggers = [one["spec"]["triggers"] for one in yaml.safe_load_all(text) if one["kind"] == "ScaledObject"]
        return [("", trigger["metadata"]["query"]) for of_one in triggers for trigger in of_one]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    asked = [span.replace("\\|", "|") for span in spans if re.search(r"(kimi_serve_|vllm:|process_)\w+", span)]
    return [("", span) for span in asked if re.search(r"[({]", span)]


@pytest.mark.parametrize("file", [ALERTS, *DASHBOARDS, AUTOSCALING, OPERATE, METRICS], ids=lambda file: file.name)
def test_no_query_asks_for_a_label_that_its_metric_has_not(file: Path) -> None:
    assert queries(file)
    for shown_in, query in queries(file):
        assert promql.problems(query, EXPORTED, exported.SCRAPED) == [], query
        shown = set(re.findall(r"\{\{ *(?:\$labels\.)?(\w+) *\}\}", shown_in))
        has = promql.grouped_by(query)
        of_metrics = {label for metric, _ in promql.named(query) for label in EXPORTED[metric]} | exported.SCRAPED
        assert shown <= (of_metrics if has is None else has), query


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sum by (typo) (rate(kimi_serve_requests_total[5m]))", "kimi_serve_requests_total: no label typo"),
        ("sum(rate(kimi_serve_requests_total[5m])) by (stat, job)", "kimi_serve_requests_total: no label stat"),
        ("sum without (le) (kimi_serve_files)", "kimi_serve_files: no label le"),
        ('kimi_serve_requests_total{code="429"}', "kimi_serve_requests_total: no label code"),
        ('kimi_serve_requests_total{status=~"5..",kind!="a"}', "kimi_serve_requests_total: no label kind"),
        ("kimi_serve_files * on (tenant) kimi_serve_images_total", "kimi_serve_files: no label tenant"),
        ("sum by (reason) (vllm:num_requests_waiting)", "vllm:num_requests_waiting: no label reason"),
        ("kimi_serve_file", "kimi_serve_file: not exported"),
        ("sum(process_memory) / 2", "process_memory: not exported"),
        ('sum by (status) (kimi_serve_requests_total{status=~"5(0|2)"}) > 0.5', None),
        ("histogram_quantile(0.9, sum by (le) (rate(kimi_serve_fetch_duration_seconds_bucket[$__interval])))", None),
        ("max by (job) (up) == 0 and on (job) count by (job) (up) > 1", None),
    ],
)  # fmt: skip
def test_a_wrong_name_or_label_is_seen(query: str, said: str | None) -> None:
    assert promql.problems(query, EXPORTED, exported.SCRAPED) == ([] if said is None else [said])


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
READY_A, READY_B = f"kimi_serve_ready_replicas{A}", f"kimi_serve_ready_replicas{B}"
HERE, VLLM = {"job": "kimi-serve-gateway"}, {"job": "vllm"}
LOW, BROKEN = '{job="g", priority="low"}', '{job="g", code="upstream_error"}'
AT_E = '{job="vllm", instance="e", engine="0"}'


def _fires(alert: str, at: int, labels: dict[str, str], series: dict[str, str]) -> Case:
    return Case(f"KimiServe{alert}", series, at, labels)


def _quiet(alert: str, at: int, series: dict[str, str]) -> Case:
    return Case(f"KimiServe{alert}", series, at, None)


def _answers(status: int) -> str:
    return f'kimi_serve_requests_total{{job="g", status="{status}"}}'


def _build(instance: str) -> str:
    return f'kimi_serve_build_info{{job="g", instance="{instance}", version="1"}}'


def _up(instance: str) -> str:
    return f'up{{job="kimi-serve-gateway", instance="{instance}"}}'


def _refused(code: str) -> str:
    return f'kimi_serve_refusals_total{{job="g", code="{code}"}}'


def _first_tokens(in_time: str) -> dict[str, str]:
    """Sixty a minute, of which so many came within ten seconds."""
    name = "kimi_serve_time_to_first_token_seconds"
    return {f'{name}_bucket{{job="g", le="10.0"}}': in_time, f'{name}_count{{job="g"}}': "0+60x200"}


def _cache(name: str, hits: str) -> dict[str, str]:
    """A hundred asked for a minute."""
    return {f"vllm:{name}_cache_hits_total{AT_E}": hits, f"vllm:{name}_cache_queries_total{AT_E}": "0+100x800"}


CASES = [
    _fires("GatewayDown", 9, JOB, {_build("a"): "1x6 stale", _build("b"): "1x2 stale"}),
    _fires("GatewayDown", 3, HERE, {_up("a"): "1 0x9", _up("b"): "0x10"}),
    _quiet("GatewayDown", 9, {_build("a"): "1x2 stale", _build("b"): "1x20", _up("a"): "0x20", _up("b"): "1x20"}),
    _fires("NoEngine", 3, JOB, {READY_A: "2 0x10", READY_B: "0x10", f"kimi_serve_replica_ready{AT_A}": "0x10"}),
    _fires("NoEngine", 5, JOB, {READY_A: "0x20", _refused("no_replica"): "0x2 1+1x20"}),
    _quiet("NoEngine", 18, {READY_A: "0x20", _refused("no_replica"): "7x20", _refused("bad_image"): "0+1x20"}),
    _quiet("NoEngine", 9, {READY_A: "0x10", READY_B: "1x10", f"kimi_serve_replica_ready{AT_A}": "0x10"}),
    _fires("FirstTokensAreLate", 31, JOB, _first_tokens("0+60x15 900+45x20")),
    _quiet("FirstTokensAreLate", 90, _first_tokens("0+60x60 3600+52x60")),
    _quiet("FirstTokensAreLate", 90, _first_tokens("0+30x60 1800+60x60")),
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
    _fires("Preemptions", 15, {"job": "vllm", "instance": "e"}, {f"vllm:num_preemptions_total{AT_E}": "0+7x30"}),
    _quiet("Preemptions", 28, {f"vllm:num_preemptions_total{AT_E}": "0+5x30"}),
    _fires("PrefixCacheCollapsed", 634, VLLM, _cache("prefix", "0+50x600 30000+10x120")),
    _quiet("PrefixCacheCollapsed", 700, _cache("prefix", "0+50x600 30000+30x120")),
    _quiet("PrefixCacheCollapsed", 700, _cache("prefix", "0+15x600 9000+0x120")),  # nobody ever came back
    _fires("ImageCacheCollapsed", 634, VLLM, _cache("mm", "0+50x600 30000+10x120")),
    _quiet("ImageCacheCollapsed", 700, _cache("mm", "0+50x600 30000+30x120")),
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
