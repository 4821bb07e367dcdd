"""docs/gateway.md and deploy/gateway.toml hold every setting, metric and error code, with the values in force."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kimi_serve.errors import ConfigError
from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.settings import Section, Settings, read
from kimi_serve.protocol.chat import OWNED_FIELDS
from kimi_serve.protocol.errors import CODES

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "gateway.md").read_text("utf-8")
FILE = ROOT / "deploy" / "gateway.toml"


def rows(pattern: str) -> dict[str, str]:
    return dict(re.findall(rf"^\| `({pattern})` \| ([^|]*) \|", DOC, re.MULTILINE))


def settings() -> dict[str, object]:
    found: dict[str, object] = {"checkpoint": None}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, Section):
            found |= {f"{name}.{key}": value.default for key, value in type(field.default).model_fields.items()}
    return found


def test_every_setting_is_documented_with_its_default() -> None:
    documented = rows(r"[a-z_]+\.[a-z_]+|checkpoint")
    assert set(documented) == set(settings())
    for name, value in settings().items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert float(documented[name]) == value, name


def test_every_error_code_is_documented_with_its_status() -> None:
    statuses = rows("[a-z_]+")
    statuses.pop("checkpoint", None)
    assert {name: int(status) for name, status in statuses.items() if status.isdigit()} == {
        name: code.status for name, code in CODES.items()
    }


def test_every_metric_is_documented() -> None:
    families = [family for family in Metrics().registry.collect() if family.name.startswith("kimi_serve_")]
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert set(rows("kimi_serve_[a-z_]+")) == names


def test_every_field_of_the_operator_is_documented() -> None:
    assert [name for name in OWNED_FIELDS if f"`{name}`" not in DOC] == []


def test_the_annotated_file_holds_the_defaults_and_nothing_else() -> None:
    assert read(FILE).model_dump(exclude={"checkpoint"}) == Settings().model_dump(exclude={"checkpoint"})
    named = set(re.findall(r"^(?:# )?([a-z_]+) = ", FILE.read_text("utf-8"), re.MULTILINE))
    assert named == {name.rpartition(".")[2] for name in settings()}


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMI_SERVE_ADMISSION__REQUESTS", "7")
    assert read(FILE).admission.requests == 7


def test_a_mounted_secret_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folder = tmp_path / "gateway.toml", tmp_path / "secrets"
    file.write_text('[keys]\nredis = "redis://old:6379/0"')
    (folder / "..2031").mkdir(parents=True)  # as Kubernetes lays a secret out
    (folder / "..2031" / "keys__redis").write_text("redis://new:6379/0\n")
    (folder / "..data").symlink_to("..2031")
    (folder / "keys__redis").symlink_to("..data/keys__redis")
    monkeypatch.setenv("KIMI_SERVE_SECRETS", str(folder))
    redis = read(file).keys.redis
    assert redis is not None
    assert redis.get_secret_value() == "redis://new:6379/0"


@pytest.mark.parametrize(
    ("name", "said"), [("key__redis", "/key__redis: there"), ("keys__reddis", "keys.reddis: there")]
)
def test_a_mounted_secret_that_is_no_setting_is_refused(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("x")
    monkeypatch.setenv("KIMI_SERVE_SECRETS", str(tmp_path))
    with pytest.raises(ConfigError, match=re.escape(said)):
        read(None)


def test_keys_in_the_environment_are_not_taken_for_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMI_SERVE_KEYS", '{"keys": []}')
    monkeypatch.setenv("KIMI_SERVE_KEYS__ENVIRONMENT", "true")
    assert read(None).keys.environment


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[admission]\nrequest = 1", "admission.request: there is no such setting"),
        ("[listen]\nport = 70000", "listen.port: 70000"),
        ("[keys]\nredis = 5", "keys.redis"),
        ("[keys", "end of a table declaration"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        read(file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("KIMI_SERVE_ADMISION__REQUESTS", "KIMI_SERVE_ADMISION__REQUESTS: there is no section 'admision'"),
        ("KIMI_SERVE_ADMISSION__REQUEST", "admission.request: there is no such setting"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=re.escape(said)):
        read(None)


def test_secrets_are_masked_when_the_settings_are_shown() -> None:
    command = [sys.executable, "-m", "kimi_serve.cli", "gateway", "--print-config", "--engine", "http://e"]
    environ = {"KIMI_SERVE_KEYS__SINGLE": "very-secret", "PATH": ""}
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "very-secret" not in shown.stdout
    assert '"urls":["http://e"]' in shown.stdout
