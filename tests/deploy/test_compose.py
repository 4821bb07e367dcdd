"""compose.yaml: what it promises about networks, secrets, limits and order."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kimi_serve.gateway.settings import Settings, read
from kimi_serve.launch import engine
from tests.deploy import composed

FILE = composed.read()
SERVICES = [pytest.param(name, one, id=name) for name, one in FILE["services"].items()]
GATEWAYS = [one for one in SERVICES if str(one.id).startswith("gateway")]
ENGINES = [one for one in SERVICES if str(one.id).startswith("engine")]


@pytest.mark.skipif(importlib.util.find_spec("compose_spec") is None, reason="compose-spec is not in the lock")
def test_it_is_a_compose_file() -> None:
    compose = importlib.import_module("compose_spec").PyCompose.from_json(json.dumps(FILE))
    assert set(compose.service_names()) == set(FILE["services"])


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_a_service_is_hardened_and_bounded(name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory"} == service["deploy"]["resources"]["limits"].keys()
    assert service["healthcheck"]["test"]
    tag = service["image"].rpartition(":")[2]
    assert any(letter.isdigit() for letter in tag), f"{service['image']} is not a version"
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & service.keys()


def processors(services: dict[str, Any]) -> dict[str, float]:
    return {name: float(one["deploy"]["resources"]["limits"]["cpus"]) for name, one in services.items()}


@pytest.mark.parametrize(("profile", "most"), [("cpu", 2), ("scale", 2), ("observability", 2), ("gpu", 4)])
def test_no_limit_is_above_a_small_machines_processors(profile: str, most: float) -> None:
    """Docker refuses to start a container whose limit is above the machine's."""
    assert max(processors(composed.services(profile)).values()) <= most


def test_what_engines_and_gateways_may_use_can_be_set() -> None:
    names = ("KIMI_SERVE_ENGINE_CPUS", "KIMI_SERVE_GATEWAY_CPUS", "KIMI_SERVE_GPU_ENGINE_CPUS")
    raised = composed.read(dict.fromkeys(names, "24"))["services"]
    assert {name for name, cpus in processors(raised).items() if cpus == 24} == {
        str(param.id) for param in [*GATEWAYS, *ENGINES]
    }


@pytest.mark.parametrize(("name", "service"), SERVICES)
def test_it_names_only_what_the_file_declares(name: str, service: dict[str, Any]) -> None:
    networks = service["networks"]
    assert set(networks) <= set(FILE["networks"])
    assert set(service.get("secrets", [])) <= set(FILE["secrets"])
    volumes = [volume for volume in service.get("volumes", []) if volume["type"] == "volume"]
    assert {volume["source"] for volume in volumes} <= set(FILE["volumes"])
    for needed, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert set(service["profiles"]) <= set(FILE["services"][needed]["profiles"])


@pytest.mark.parametrize(("name", "service"), ENGINES)
def test_an_engine_publishes_no_port_and_reaches_nothing(name: str, service: dict[str, Any]) -> None:
    assert "ports" not in service
    assert set(service["networks"]) == {"engines"}
    assert FILE["networks"]["engines"]["internal"] is True


def test_ports_are_published_on_this_machine_only_until_an_address_is_given() -> None:
    published = [port for one in FILE["services"].values() for port in one.get("ports", [])]
    assert len(published) == 5
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []
    elsewhere = composed.read({"KIMI_SERVE_ADDRESS": "0.0.0.0"})["services"]
    assert elsewhere["gateway-gpu"]["ports"] == ["0.0.0.0:8000:8000"]


def test_every_variable_is_documented_with_its_default() -> None:
    used = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", (composed.FOLDER / "compose.yaml").read_text("utf-8")))
    page = (composed.FOLDER.parents[1] / "docs" / "compose.md").read_text("utf-8")
    assert dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]*) \|", page, re.MULTILINE)) == used


def test_no_secret_stands_in_it() -> None:
    for name, service in FILE["services"].items():
        for variable in service.get("environment", {}):
            is_file = variable.endswith("_FILE") or variable == "KIMI_SERVE_SECRETS"
            assert is_file or not any(word in variable for word in ("PASSWORD", "SECRET", "TOKEN", "API_KEY")), name


def test_the_script_writes_every_secret_once(tmp_path: Path) -> None:
    shutil.copy(composed.FOLDER / "make-secrets.sh", tmp_path)
    written = []
    for _ in range(2):
        subprocess.run(["sh", str(tmp_path / "make-secrets.sh")], check=True, capture_output=True)
        written.append({file.name: file.read_text("utf-8") for file in (tmp_path / "secrets").iterdir()})
    assert written[0] == written[1]
    assert {f"./secrets/{name}" for name in written[0]} == {one["file"] for one in FILE["secrets"].values()}
    assert len(set(written[0].values())) == len(written[0])
    password = written[0]["keys__redis"].partition("redis://:")[2].partition("@")[0]
    assert len(password) > 30
    assert f"requirepass {password}" in written[0]["redis_conf"]
    assert f"kimi:{written[0]['postgres_password']}@postgres/kimi" in written[0]["keys__postgres"]
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("name", "service"), GATEWAYS)
def test_a_gateway_takes_its_settings(
    name: str, service: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service["command"] == ["gateway"]
    for secret in service.get("secrets", []):
        (tmp_path / secret).write_text("redis://:password@redis:6379/0")
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, value.replace("/run/secrets", str(tmp_path)))
    settings = read(None)
    assert settings.listen.host == "0.0.0.0"
    engines = {url.removeprefix("http://").removesuffix(":8000") for url in settings.replicas.urls}
    assert engines == {needed for needed in service["depends_on"] if needed.startswith("engine")}
    assert bool(service.get("secrets")) == (settings.keys.redis is not None)
    grace = settings.listen.settle_s + settings.listen.grace_s
    assert composed.seconds(service["stop_grace_period"]) > grace + 10
    unknown = [name for name in service["environment"] if not is_setting(name)]
    assert unknown == []


def is_setting(variable: str) -> bool:
    section, _, name = variable.removeprefix("KIMI_SERVE_").lower().partition("__")
    if variable == "KIMI_SERVE_SECRETS" or not name:
        return variable == "KIMI_SERVE_SECRETS" or section in Settings.model_fields
    return name in type(Settings.model_fields[section].default).model_fields


@pytest.mark.parametrize(("name", "service"), ENGINES)
def test_the_launcher_takes_an_engines_command(name: str, service: dict[str, Any]) -> None:
    verb, _, *arguments = service["command"]
    plan = engine.prepare(str(engine.bundled()), arguments, Path("/usr/bin/vllm"), {})
    assert verb == "engine"
    assert list(plan.argv[-len(arguments) :]) == arguments
    drain = next(int(b or a.partition("=")[2]) for a, b in pairs(arguments) if a.startswith("--shutdown-timeout"))
    assert composed.seconds(service["stop_grace_period"]) > drain + 10


def pairs(words: list[str]) -> list[tuple[str, str]]:
    """Each word, and the one after it where that is a value."""
    return [(word, "" if "=" in word else after) for word, after in zip(words, [*words[1:], ""], strict=True)]


def test_prometheus_looks_for_the_names_that_the_services_have() -> None:
    scraped = yaml.safe_load((composed.FOLDER / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    names = {name for job in scraped for one in job["dns_sd_configs"] for name in one["names"]}
    for service in [param.values[1] for param in [*GATEWAYS, *ENGINES]]:
        aliases = {alias for one in service["networks"].values() for alias in one.get("aliases", [])}
        assert aliases & names
    assert set(FILE["services"]["prometheus"]["networks"]) == {"front", "engines"}
    assert (composed.FOLDER.parent / "observability" / "alerts.yaml").is_file()
