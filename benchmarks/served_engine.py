"""`kimi-serve engine` on a checkpoint, timed from outside. Knows processes and the wire; never what a kernel does."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp

from kimi_serve.launch.family import Family

STARTS_WITHIN_S = 1800.0
ANSWERS_WITHIN_S = 1200.0
NAME = "full-size"
LOADING = re.compile(r"Loading weights took ([\d.]+) seconds")
CACHE = re.compile(r"--kv-cache-memory-bytes[ =](\d+)")
PROMPT = 8  # tokens before a measured decode
VOCABULARY = 163_584  # ids without special tokens


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came after all streams had their first token."""

    tokens: int
    seconds: float
    distinct: int  # of all tokens that came

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def prompt(seed: str, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256, VOCABULARY) for _ in range(length)]


def decode_prompts(round_: int, batch: int) -> list[list[int]]:
    return [prompt(f"decode {round_} {number}", PROMPT) for number in range(batch)]


class Engine:
    """From its start to the end of its last process."""

    def __init__(self, folder: Path, flags: Sequence[str], log: Path) -> None:
        self.port = _free_port()
        self.log = log
        command = str(Path(sys.executable).parent / "kimi-serve")
        argv = [command, "engine", str(folder), "--host", "127.0.0.1", "--port", str(self.port)]
        argv += ["--served-model-name", NAME, *flags]
        self._began = time.monotonic()
        self._family = Family(argv, os.environ, log)
        self.ready_s = 0.0

    def __enter__(self) -> Self:
        try:
            self.ready_s = asyncio.run(self._ready()) - self._began
        except BaseException:
            self._family.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._family.stop()

    @property
    def loading_s(self) -> float | None:
        """Reading the weights alone, as vLLM logs it."""
        found = LOADING.findall(self.log.read_text(encoding="utf-8", errors="replace"))
        return float(found[-1]) if found else None

    @property
    def cache(self) -> int:
        """Bytes for keys and values, from the command that the launcher shows."""
        found = CACHE.findall(self.log.read_text(encoding="utf-8", errors="replace"))
        return int(found[-1]) if found else 0

    def decode(self, round_: int, batch: int, tokens: int) -> Decoded:
        return asyncio.run(self._decode(decode_prompts(round_, batch), tokens))

    def prefill(self, round_: int, tokens: int) -> float:
        """Tokens a second from the request to its first token."""
        begun = time.perf_counter()
        asyncio.run(self._complete(prompt(f"prefill {round_}", tokens)))
        return tokens / (time.perf_counter() - begun)

    def post(self, path: str) -> None:
        """A route without a body, as the profiler's."""

        async def send() -> None:
            async with _session() as session, session.post(f"{self.url}{path}") as answer:
                answer.raise_for_status()

        asyncio.run(send())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def memory(self) -> tuple[int, int]:
        """Bytes of all processes together, shared pages counted once, and of the largest one."""
        found = [size for pid in self._family.members() if (size := _proportional_set(pid))]
        return sum(found), max(found, default=0)

    async def _ready(self) -> float:
        deadline = time.monotonic() + STARTS_WITHIN_S
        async with _session() as session:
            while True:
                try:
                    async with session.get(f"{self.url}/health") as answer:
                        if answer.status == 200:
                            return time.monotonic()
                except aiohttp.ClientError:
                    pass
                if self._family.exit_code is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{self.log}: the engine does not answer:\n{self.log.read_text()[-4000:]}")
                await asyncio.sleep(0.2)

    async def _decode(self, prompts: Sequence[list[int]], tokens: int) -> Decoded:
        async with _session() as session:
            streams = await asyncio.gather(*(self._stream(session, ids, tokens) for ids in prompts))
        begin, end = max(stream[0][0] for stream in streams), max(stream[-1][0] for stream in streams)
        counted = sum(len(ids) for stream in streams for at, ids in stream if at > begin)
        return Decoded(counted, end - begin, len({i for stream in streams for _, ids in stream for i in ids}))

    async def _stream(
        self, session: aiohttp.ClientSession, ids: list[int], tokens: int
    ) -> list[tuple[float, list[int]]]:
        """When which tokens came."""
        body = _body(ids, tokens) | {"stream": True, "return_token_ids": True}
        arrived: list[tuple[float, list[int]]] = []
        async with session.post(f"{self.url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                raise SystemExit(f"{answer.status}: {(await answer.text())[:2000]}")
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["token_ids"]:
                        arrived.append((time.perf_counter(), choices[0]["token_ids"]))
        if sum(len(ids) for _, ids in arrived) != tokens:
            raise SystemExit(f"asked for {tokens} tokens; {sum(len(i) for _, i in arrived)} came")
        return arrived

    async def _complete(self, ids: list[int]) -> None:
        async with _session() as session, session.post(f"{self.url}/v1/completions", json=_body(ids, 1)) as answer:
            if answer.status != 200:
                raise SystemExit(f"{answer.status}: {(await answer.text())[:2000]}")
            await answer.read()


def _body(ids: list[int], tokens: int) -> dict[str, object]:
    return {"model": NAME, "prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(ANSWERS_WITHIN_S))


def _proportional_set(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # it ended while we looked
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")), 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
