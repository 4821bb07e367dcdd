"""One engine behind HTTP for the tests: `kimi-serve engine` on a free port. Knows processes and the wire; no model."""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import openai

from kimi_serve.launch.family import Family
from kimi_serve.launch.up import free_port

NAME = "kimi-vl"
CONTEXT = 8192
STARTS_IN = 400.0  # seconds: a busy machine with two cores needs minutes


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, whatever its status."""

    status: int
    body: dict[str, Any]

    @property
    def text(self) -> str:
        content = self.body["choices"][0]["message"]["content"]
        assert isinstance(content, str), self.body
        return content

    @property
    def prompt_tokens(self) -> int:
        return int(self.body["usage"]["prompt_tokens"])

    @property
    def error(self) -> str:
        return str(self.body["error"]["message"])


class Server:
    """`kimi-serve engine CHECKPOINT FLAGS`, from its start to the end of its last process."""

    def __init__(
        self, checkpoint: Path, flags: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        argv = [command("kimi-serve"), "engine", str(checkpoint), "--port", self.url.rpartition(":")[2]]
        argv += ["--host", "127.0.0.1", "--served-model-name", NAME, *flags]
        self._http = fresh_http(self.url)
        self._family = Family(argv, {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **(environ or {})}, log)

    def __enter__(self) -> Self:
        try:
            self._await_health()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        self._family.stop()

    def kill(self) -> None:
        """Every process of it at once, as where a machine is short of memory."""
        for pid in self._family.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def log(self) -> str:
        return self._family.log.read_text(encoding="utf-8", errors="replace")

    def client(self) -> openai.OpenAI:
        url = f"{self.url}/v1"
        return openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=fresh_http(url))

    def post(self, path: str, body: Mapping[str, object]) -> Reply:
        answer = self._http.post(path, json={"model": NAME, **body})
        return Reply(answer.status_code, json.loads(answer.content))

    def chat(self, content: object, **options: object) -> Reply:
        """One user message; greedy and short unless `options` say otherwise."""
        return self.conversation([{"role": "user", "content": content}], **options)

    def conversation(self, messages: Sequence[Mapping[str, object]], **options: object) -> Reply:
        body = {"messages": messages, "max_tokens": 4, "temperature": 0, **options}
        return self.post("/v1/chat/completions", body)

    def tokenize(self, messages: Sequence[Mapping[str, object]], **options: object) -> list[int]:
        reply = self.post("/tokenize", {"messages": messages, **options})
        assert reply.status == 200, reply.body
        return [int(i) for i in reply.body["tokens"]]

    def is_healthy(self) -> bool:
        try:
            return self._http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def _await_health(self) -> None:
        deadline = time.monotonic() + STARTS_IN
        while not self.is_healthy():
            assert self._family.exit_code is None, (
                f"the engine ended with {self._family.exit_code}:\n{self.log[-6000:]}"
            )
            assert time.monotonic() < deadline, f"no answer in {STARTS_IN} s:\n{self.log[-6000:]}"
            time.sleep(0.5)


def fresh_http(url: str) -> httpx.Client:
    """A connection a request: the server closes idle ones whenever it likes, also under a request on its way."""
    return httpx.Client(base_url=url, timeout=120, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def command(name: str) -> str:
    """The executable of this very environment."""
    return str(Path(sys.executable).parent / name)
