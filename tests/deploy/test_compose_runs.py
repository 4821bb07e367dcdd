"""The profiles cpu and scale as plain processes: their own commands and environment, fake engines for vLLM."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kimi_serve.launch.up import free_port
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import in_thread
from tests.deploy import composed, plain
from tests.gateway.tenants.postgres_server import postgres_server

MODEL = "kimi-vl-nano"


def fake() -> FakeEngine:
    return FakeEngine(Dials(model=MODEL, max_model_len=8192))


def ask(url: str, key: str | None = None) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30, trust_env=False)


def test_the_cpu_profile_answers_and_leaves_in_time() -> None:
    services = composed.services("cpu")
    assert set(services) == {"engine-cpu", "gateway-cpu"}
    with (
        in_thread(fake()) as served,
        plain.gateway(services["gateway-cpu"], {"http://engine-cpu:8000": served.url}) as running,
    ):
        running.wait_healthy()
        answer = ask(running.url)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(composed.seconds(running.service["stop_grace_period"])) == 0


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_the_scale_profiles_gateways_share_keys_and_limits(tmp_path: Path) -> None:
    services = composed.services("scale")
    secrets = made_secrets(tmp_path)
    with (
        in_thread(fake()) as one,
        in_thread(fake()) as two,
        redis(tmp_path) as redis_port,
        postgres_server() as postgres,
    ):
        password = (secrets / "postgres_password").read_text("utf-8")
        postgres.execute(f"CREATE ROLE kimi LOGIN PASSWORD '{password}'")
        postgres.execute("CREATE DATABASE kimi OWNER kimi")
        mounted = mount(secrets, services["gateway-1"]["secrets"], tmp_path, redis_port, postgres.port)
        here = {"http://engine-1:8000": one.url, "http://engine-2:8000": two.url, "/run/secrets": str(mounted)}
        environ = {"PATH": os.environ["PATH"], "KIMI_SERVE_SECRETS": str(mounted)}
        plain.keys_command(["migrate"], environ)
        made = plain.keys_command(["create", "alice", "--requests-per-minute", "2"], environ)
        key = next(word for word in made.split() if word.startswith("ksk_"))
        with plain.gateway(services["gateway-1"], here) as first, plain.gateway(services["gateway-2"], here) as second:
            first.wait_healthy()
            second.wait_healthy()
            assert ask(first.url).status_code == 401
            answers = [ask(url, key).status_code for url in (first.url, second.url, first.url, second.url)]
            assert answers == [200, 200, 429, 429]


def made_secrets(folder: Path) -> Path:
    shutil.copy(composed.FOLDER / "make-secrets.sh", folder)
    subprocess.run(["sh", str(folder / "make-secrets.sh")], check=True, capture_output=True)
    return folder / "secrets"


def mount(secrets: Path, names: list[str], folder: Path, redis_port: int, postgres_port: int) -> Path:
    """What a gateway's container finds in /run/secrets, with the addresses of this machine."""
    mounted = folder / "mounted"
    mounted.mkdir()
    for name in names:
        text = (secrets / name).read_text("utf-8")
        text = text.replace("@redis:6379/", f"@127.0.0.1:{redis_port}/")
        (mounted / name).write_text(text.replace("@postgres/", f"@127.0.0.1:{postgres_port}/"))
    return mounted


@contextmanager
def redis(folder: Path) -> Iterator[int]:
    """With the configuration that make-secrets.sh wrote."""
    port = free_port()
    command = ["redis-server", str(folder / "secrets" / "redis_conf"), "--port", str(port)]
    process = subprocess.Popen([*command, "--bind", "127.0.0.1", "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + plain.STARTS_WITHIN_S
        while not is_open(port):
            assert process.poll() is None, "redis-server does not take its configuration"
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
