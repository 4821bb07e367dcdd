"""What is measured: the engine itself, our gateway, and peers, each on one core. Knows how each is started."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kimi_serve.launch.up import free_port

MODEL = "kimi-vl"
CHECKPOINT = Path(__file__).parents[1] / "kimi_serve" / "assets" / "kimi-vl-nano"
STARTS_WITHIN_S = 180
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    port: int
    key: str
    pid: int | None = None  # None: the engine

    def request(self, body: bytes) -> bytes:
        lines = ["POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{self.port}", "content-type: application/json"]
        lines += [f"authorization: Bearer {self.key}", f"content-length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body

    def cpu_s(self) -> float:
        """Processor time of the process and of those that it started."""
        return 0.0 if self.pid is None else sum(_ticks(pid) for pid in _family(self.pid)) / _TICKS

    def resident_mib(self) -> float:
        assert self.pid is not None
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _family(self.pid))
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def ours(folder: Path, engine: int, core: int) -> Iterator[Target]:
    """With all that costs time in production: keys with limits, exact counts, admission, metrics and logs."""
    keys = folder / "keys.json"
    keys.unlink(missing_ok=True)
    limits = ["--requests-per-minute", "100000000", "--tokens-per-minute", "1000000000000"]
    create = [sys.executable, "-m", "kimi_serve.cli", "keys", "--file", keys, "create", "benchmark", *limits]
    made = subprocess.run(create, check=True, capture_output=True, text=True).stdout.split()[0]
    port = free_port()
    command = [sys.executable, "-m", "kimi_serve.cli", "gateway", "--engine", f"http://127.0.0.1:{engine}"]
    command += ["--port", str(port), "--checkpoint", str(CHECKPOINT)]
    with started("ours", command, port, made, core, folder, {"KIMI_SERVE_KEYS__FILE": str(keys)}) as target:
        yield target


@contextmanager
def litellm(peers: Path, folder: Path, engine: int, core: int) -> Iterator[Target]:
    """With a key, as its documentation sets it up for production, without a database."""
    config, port, key = folder / "litellm.yaml", free_port(), "sk-benchmark"
    config.write_text(
        f"model_list:\n- model_name: {MODEL}\n  litellm_params: {{model: hosted_vllm/{MODEL}, "
        f"api_base: 'http://127.0.0.1:{engine}/v1', api_key: none}}\ngeneral_settings: {{master_key: {key}}}\n"
    )
    command = [str(peers / "bin" / "litellm"), "--config", str(config), "--port", str(port), "--host", "127.0.0.1"]
    environment = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with started("litellm", [*command, "--num_workers", "1"], port, key, core, folder, environment) as target:
        yield target


@contextmanager
def vllm_router(peers: Path, folder: Path, engine: int, core: int) -> Iterator[Target]:
    """The Rust router, as it comes."""
    port = free_port()
    command = [str(peers / "bin" / "vllm-router"), "--worker-urls", f"http://127.0.0.1:{engine}", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--log-level", "error", "--prometheus-port", str(free_port())]
    with started("vllm-router", command, port, "none", core, folder, {}) as target:
        yield target


@contextmanager
def started(
    name: str, command: list[str], port: int, key: str, core: int, folder: Path, environment: dict[str, str]
) -> Iterator[Target]:
    with (folder / f"{name}.log").open("wb") as log:
        child = subprocess.Popen(
            ["taskset", "-c", str(core), *command], stdout=log, stderr=log, env={**os.environ, **environment}
        )
    try:
        target = Target(name, port, key, child.pid)
        _wait(target, child, folder / f"{name}.log")
        yield target
    finally:
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait(target: Target, child: subprocess.Popen[bytes], log: Path) -> None:
    body = b'{"model":"%s","messages":[{"role":"user","content":"x"}]}' % MODEL.encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {target.key}"}
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline and child.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=20)
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    said = log.read_text(errors="replace")[-2000:]
    raise SystemExit(f"{target.name} gives no answer; its log ends with:\n{said}")


def _family(pid: int) -> list[int]:
    try:
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(int(child)))]


def _ticks(pid: int) -> int:
    fields = re.sub(r"^.*\) ", "", Path(f"/proc/{pid}/stat").read_text()).split()
    return int(fields[11]) + int(fields[12])
