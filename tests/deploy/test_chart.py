"""The chart: what it makes for each example, with real Helm and Kubernetes' own schemas."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart, HelmError, lint, package

from deploy.helm import chart
from kimi_serve.gateway.settings import read
from kimi_serve.launch import engine
from tests.deploy import kubernetes

EXAMPLES = [pytest.param(chart.values_of(example), id=example.stem) for example in chart.EXAMPLES]
SCRIPT = "run `make chart` and look at the difference"


@pytest.mark.parametrize("values", EXAMPLES)
def test_helm_has_nothing_to_say_against_an_example(values: dict[str, Any]) -> None:
    report = lint(chart.CHART, values, strict=True, kube_version="v1.33.0")
    assert report["errors"] == []
    assert [message for message in report["messages"] if "icon is recommended" not in message["error"]] == []


@pytest.mark.parametrize("example", chart.EXAMPLES, ids=lambda path: path.stem)
def test_an_example_makes_what_its_golden_file_shows(example: Path) -> None:
    assert chart.golden(example).read_text("utf-8") == chart.rendered(chart.values_of(example)), SCRIPT


def test_the_documentation_counts_the_examples() -> None:
    counted = {10: "ten", 11: "eleven", 12: "twelve"}[len(chart.EXAMPLES)]
    for page in ("deploy.md", "kubernetes.md"):
        said = re.findall(r"(\w+) examples", (chart.ROOT / "docs" / page).read_text("utf-8"))
        assert said == [counted], page


@pytest.mark.parametrize("version", kubernetes.VERSIONS)
@pytest.mark.parametrize("values", EXAMPLES)
def test_every_object_is_valid(values: dict[str, Any], version: str) -> None:
    found = [problem for one in chart.objects(values) for problem in kubernetes.problems(one, version)]
    if version == "1.30" and values.get("store", {}).get("image"):  # values.yaml: image volumes need 1.33
        assert found
        found = [problem for problem in found if "'image' was unexpected" not in problem]
    assert found == []


def test_readme_and_schema_are_current() -> None:
    assert (chart.CHART / "README.md").read_text("utf-8") == chart.readme(), SCRIPT
    assert (chart.CHART / "values.schema.json").read_text("utf-8") == chart.schema(), SCRIPT


def test_every_value_has_a_row_and_a_type() -> None:
    documented = {path for path, _, _ in chart.documented()}
    schema = json.loads((chart.CHART / "values.schema.json").read_text("utf-8"))
    for path in leaves(yaml.safe_load((chart.CHART / "values.yaml").read_text("utf-8"))):
        assert any(path == row or path.startswith(f"{row}.") for row in documented), path
        assert is_described(schema, schema, path.split(".")), path


def leaves(tree: dict[str, Any], above: str = "") -> list[str]:
    return [
        leaf
        for name, value in tree.items()
        for leaf in (leaves(value, f"{above}{name}.") if isinstance(value, dict) and value else [f"{above}{name}"])
    ]


def is_described(schema: dict[str, Any], part: dict[str, Any], path: list[str]) -> bool:
    if "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    if "oneOf" in part:
        return any(is_described(schema, one, path) for one in part["oneOf"])
    if not path:
        return True
    return path[0] in part.get("properties", {}) and is_described(schema, part["properties"][path[0]], path[1:])


def test_every_object_of_the_schema_refuses_unknown_names() -> None:
    """But labels, annotations, models and adapters, which are names, and Kubernetes' own structures."""
    schema = json.loads((chart.CHART / "values.schema.json").read_text("utf-8"))
    is_open = [
        path
        for path, part in parts(schema)
        if part.get("type") == "object" and part.get("additionalProperties") is not False
    ]
    assert sorted(is_open) == [
        "$defs.annotations",
        "$defs.engine.properties.adapters",
        "$defs.kubernetes",
        "$defs.labels",
        "properties.models",
    ]


def parts(schema: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    if isinstance(schema, list):
        return [found for number, one in enumerate(schema) for found in parts(one, f"{path}.{number}")]
    if not isinstance(schema, dict):
        return []
    return [
        (path.lstrip("."), schema),
        *(found for key, one in schema.items() for found in parts(one, f"{path}.{key}")),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"gatway": {}},
        {"gateway": {"replicas": 0}},
        {"gateway": {"replicas": 2, "filesClaim": "files"}},
        {"gateway": {"replicas": 1, "filesClaim": "files", "autoscaling": {"enabled": True}}},
        {"gateway": {"settings": {"files": {"folder": "/tmp"}}}},
        {"gateway": {"replicas": "two"}},
        {"gateway": {"settings": {"admission": {"request": 5}}}},
        {"gateway": {"settings": {"keys": {"redis": "redis://:password@host/0"}}}},
        {"gateway": {"settings": {"upstream": {"api_key": "secret"}}}},
        {"gateway": {"settings": {"listen": {"port": 9000}}}},
        {"gateway": {"settings": {"replicas": {"urls": ["http://elsewhere"]}}}},
        {"gateway": {"secrets": [{"setting": "keys.redis", "value": "redis://host/0"}]}},
        {"gateway": {"secrets": [{"setting": "listen.port", "secret": "a", "key": "b"}]}},
        {"gateway": {"service": {"type": "ExternalName"}}},
        {"gateway": {"httpRoute": {"enabled": True}}},
        {"gateway": {"model": "none-of-them"}},
        {"models": {"Kimi_VL": {}}},
        {"models": {"gateway": {}}},
        {"models": {"a-name-with-too-many-letters": {}}},
        {"models": {"kimi": {"download": {"repository": "a/b", "revision": "main"}}}},
        {"models": {"kimi": {"download": {"repository": "a/b", "revision": "0" * 40}}}},  # nowhere to put it
        {"models": {"kimi": {"gpus": -1}}},
        {"models": {"kimi": {"adapters": {"tone": "models/tone"}}}},
        {"models": {"kimi": {"adapters": {"tone=": "/models/tone"}}}},
        {"models": {"kimi": {"adapters": {"kimi": "/models/tone"}}}},  # the base's name
        {"models": {"kimi": {"resources": {"limits": {"memory": "much"}}}}},
        {"models": {"kimi": {"autoscaling": {"kind": "magic"}}}},
        {"image": {"digests": {"gateway": "sha256:short"}}},
        {"store": {"accessModes": []}},
        {"networkPolicy": {"enabled": "yes"}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(HelmError):
        chart.templates(wrong)


@pytest.mark.parametrize("values", EXAMPLES)
def test_the_gateway_takes_the_settings_that_it_is_given(values: dict[str, Any], tmp_path: Path) -> None:
    [config] = [one for one in chart.objects(values) if one["kind"] == "ConfigMap" and "gateway.toml" in one["data"]]
    file = tmp_path / "gateway.toml"
    file.write_text(config["data"]["gateway.toml"])
    settings = read(file)
    assert settings.listen.host == "0.0.0.0"
    assert settings.replicas.dns == "demo-engines.serving.svc:8000"


def test_the_launcher_takes_the_arguments_of_every_engine() -> None:
    found = {
        tuple(container["args"])
        for example in chart.EXAMPLES
        for one in chart.objects(chart.values_of(example))
        for pod in kubernetes.pods(one)
        for container in pod["containers"]
        if container["name"] == "engine"
    }
    assert len(found) > len(chart.EXAMPLES) / 2
    for verb, _, *arguments in found:
        plan = engine.prepare(str(engine.bundled()), arguments, Path("/usr/bin/vllm"), {})
        assert verb == "engine"
        assert list(plan.argv[-len(arguments) :]) == arguments


def test_adapters_are_options_of_their_engine_and_of_no_other() -> None:
    adapters = {"tone": "/models/tone", "terms": "/models/terms"}
    made = chart.objects({"models": {"a": {"adapters": adapters, "args": ["--max-loras=2"]}, "b": {}}})
    containers = [pod["containers"][0] for one in made for pod in kubernetes.pods(one)]
    a, b = [one["args"] for one in containers if one["name"] == "engine"]
    assert a[-5:] == ["--enable-lora", "--lora-modules", "terms=/models/terms", "tone=/models/tone", "--max-loras=2"]
    assert "--enable-lora" not in b


def test_a_dashboard_becomes_a_config_map(tmp_path: Path) -> None:
    copy = tmp_path / "chart"
    shutil.copytree(chart.CHART, copy)  # the link of files/observability becomes a folder
    dashboard = '{"title": "Images", "legend": "{{replica}}"}'
    (copy / "files" / "observability" / "dashboards").mkdir(exist_ok=True)
    (copy / "files" / "observability" / "dashboards" / "images.json").write_text(dashboard)
    made = chart.objects({"monitoring": {"dashboards": True}}, copy)
    [one] = [one for one in made if one["metadata"]["name"] == "demo-images"]
    assert one["data"]["images.json"].strip() == dashboard
    assert one["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_a_changed_setting_restarts_the_gateways() -> None:
    def checksum(requests: int) -> str:
        made = chart.templates({"gateway": {"settings": {"admission": {"requests": requests}}}})
        deployment = yaml.safe_load(made["gateway-deployment.yaml"])
        found: str = deployment["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        return found

    assert checksum(5) == checksum(5) != checksum(6)


def test_another_revision_is_another_job() -> None:
    def job(digit: str) -> str:
        wanted = {"repository": "a/b", "revision": digit * 40}
        made = chart.templates({"models": {"m": {"download": wanted}}, "store": {"create": True}})
        found: str = yaml.safe_load(made["download-job.yaml"])["metadata"]["name"]
        return found

    assert job("1") == job("1") != job("2")


def test_a_packed_chart_holds_rules_and_no_examples(tmp_path: Path) -> None:
    with tarfile.open(package(chart.CHART, destination=tmp_path)) as packed:
        names = {name.removeprefix("kimi-serve/") for name in packed.getnames()}
    assert {"Chart.yaml", "values.schema.json", "README.md", "files/observability/alerts.yaml"} <= names
    assert "files/observability/dashboards/overview.json" in names
    assert not [name for name in names if name.startswith("ci/")]


def test_the_notes_say_where_to_send_a_request() -> None:
    with Chart.load(chart.CHART) as loaded:
        notes = loaded.render({}, name="demo", namespace="serving")["kimi-serve/templates/NOTES.txt"]
    assert "port-forward service/demo-gateway 8080:80" in notes
    assert "No keys" in notes
    assert "kimi-vl-nano" in notes


def test_its_files_stay_small_and_hold_one_kind_each() -> None:
    lines = {path.name: path.read_text("utf-8").splitlines() for path in (chart.CHART / "templates").iterdir()}
    assert len((chart.CHART / "values.yaml").read_text("utf-8").splitlines()) < 250
    assert len(lines["_helpers.tpl"]) < 120
    for name, text in lines.items():
        kinds = {line for line in text if re.match(r"kind: ", line)}
        if name.endswith(".yaml"):
            assert len(kinds) == 1, name
