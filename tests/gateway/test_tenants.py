"""Keys over HTTP: who gets in, what is counted, what an engine is told. Keys are made by the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.test_gateway import HELLO, error_of
from tests.waiting import eventually


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def keys(file: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "kimi_serve.cli", "keys", "--file", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def made(file: Path, *arguments: str) -> dict[str, str]:
    """The header of a new key."""
    return {"authorization": f"Bearer {keys(file, 'create', *arguments).splitlines()[0]}"}


def tenant_metric(front: Front, name: str, tenant: str) -> float:
    lines = front.http.get("/metrics").text.splitlines()
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and f'tenant="{tenant}"' in line
    )


def test_only_a_key_opens_the_door(start: Start, file: Path) -> None:
    good = made(file, "acme")
    front = start(keys={"file": str(file)})
    error_of(front.chat("x"), 401, "missing_key")
    error_of(front.chat("x", headers={"authorization": "Bearer ksk_AAAAAAAAAAAA_" + "b" * 43}), 401, "invalid_key")
    assert front.chat("x", headers=good).status_code == 200
    anthropic = {"x-api-key": good["authorization"].removeprefix("Bearer ")}
    assert front.chat("x", headers=anthropic).status_code == 200
    assert front.engines[0].record.requests[-1].header("authorization") is None
    assert front.engines[0].record.requests[-1].header("x-api-key") is None


def test_a_revoked_key_is_refused_within_seconds(start: Start, file: Path) -> None:
    header = made(file, "acme")
    front = start(keys={"file": str(file)})
    assert front.chat("x", headers=header).status_code == 200
    keys(file, "revoke", header["authorization"].split("_")[1])
    eventually(lambda: front.chat("x", headers=header).status_code == 401, 8.0)


def test_limits_hold_and_say_when_to_come_back(start: Start, file: Path) -> None:
    header = made(file, "acme", "--requests-per-minute", "2")
    front = start(keys={"file": str(file)})
    first = front.chat("x", headers=header)
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert front.chat("x", headers=header).status_code == 200
    refused = front.chat("x", headers=header)
    assert "requests_per_minute is 2" in str(error_of(refused, 429, "rate_limited")["message"])
    assert 1 <= int(refused.headers["retry-after"]) <= 31
    front.assert_idle()


def test_tokens_are_settled_to_what_the_engine_used(start: Start, file: Path) -> None:
    """The estimate is the prompt and max_tokens; the fake engine uses 4, so many requests fit a limit of 400."""
    header = made(file, "acme", "--tokens-per-minute", "400")
    front = start(keys={"file": str(file)}, dials={"tokens": 4, "prompt_tokens": 20})
    for _ in range(6):
        assert front.chat("x", headers=header, max_tokens=200).status_code == 200
    error_of(front.chat("x", headers=header, max_tokens=390), 429, "rate_limited")


def test_scopes_and_models_of_a_key_are_kept(start: Start, file: Path) -> None:
    counting = made(file, "acme", "--scope", "tokenize")
    other = made(file, "acme", "--model", "gpt-*")
    front = start(keys={"file": str(file)})
    error_of(front.chat("x", headers=counting), 403, "scope_missing")
    body = {"model": MODEL, "messages": HELLO}
    assert front.http.post("/tokenize", json=body, headers=counting).status_code == 200
    error_of(front.chat("x", headers=other), 403, "model_not_allowed")
    assert front.http.get("/v1/models", headers=other).json()["data"] == []


def test_tenants_have_prefix_caches_of_their_own(start: Start, file: Path) -> None:
    salts = []
    headers = [made(file, "acme"), made(file, "acme"), made(file, "other")]
    front = start(keys={"file": str(file), "salt_secret": "a secret of many letters"})
    for header in headers:
        front.chat("x", headers=header)
        salts.append(json.loads(front.engines[0].record.requests[-1].body)["cache_salt"])
    assert salts[0] == salts[1] != salts[2]
    assert tenant_metric(front, "kimi_serve_requests_total", "acme") == 2


def test_the_command_line_lists_no_secret(file: Path) -> None:
    secret = made(file, "acme")["authorization"].split("_")[2]
    listed = keys(file, "list")
    assert "acme" in listed
    assert secret not in listed
    assert "argon2" not in listed


def test_a_rotated_key_keeps_its_limits(start: Start, file: Path) -> None:
    old = made(file, "acme", "--requests-per-minute", "2")
    front = start(keys={"file": str(file)})
    assert front.chat("x", headers=old).status_code == 200
    shown = keys(file, "rotate", old["authorization"].split("_")[1])
    new = {"authorization": f"Bearer {shown.splitlines()[0]}"}
    assert front.chat("x", headers=new).status_code == 200
    error_of(front.chat("x", headers=new), 429, "rate_limited")
