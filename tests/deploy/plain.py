"""Services of compose.yaml as plain processes of this machine. Knows commands and checks; judges no answer."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kimi_serve.launch import engine
from kimi_serve.launch.up import free_port
from tests.deploy import composed

STARTS_WITHIN_S = 60


@dataclass(frozen=True)
class Running:
    url: str
    process: "subprocess.Popen[str]"
    service: dict[str, Any]

    def wait_healthy(self) -> None:
        """With the service's own check, as a container's engine runs it."""
        cmd, _, *arguments = self.service["healthcheck"]["test"]
        assert cmd == "CMD"
        check = [sys.executable, *(word.replace("http://127.0.0.1:8000", self.url) for word in arguments)]
        deadline = time.monotonic() + STARTS_WITHIN_S
        while subprocess.run(check, env={"PATH": os.environ["PATH"]}, capture_output=True, check=False).returncode:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline, "the gateway did not become healthy"
            time.sleep(0.2)


@contextmanager
def gateway(service: dict[str, Any], replaced: Mapping[str, str]) -> Iterator[Running]:
    """Its command and environment; `replaced` is what a container has and this machine has not."""
    port = free_port()
    here = {"/opt/kimi-vl-nano": str(engine.bundled()), "0.0.0.0": "127.0.0.1", **replaced}
    environ = composed.environment(service, here)
    environ |= {"KIMI_SERVE_LISTEN__PORT": str(port), "KIMI_SERVE_LISTEN__SETTLE_S": "0"}  # nobody has to forget it
    command = [sys.executable, "-m", "kimi_serve.cli", *service["command"]]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        yield Running(f"http://127.0.0.1:{port}", process, service)
    finally:
        process.kill()
        process.communicate()


def keys_command(arguments: list[str], environ: Mapping[str, str]) -> str:
    command = [sys.executable, "-m", "kimi_serve.cli", "keys", *arguments]
    return subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=True).stdout
