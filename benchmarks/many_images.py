"""Hundreds of distinct pictures in one prompt, through gateway and engine: what a turn sends, counts, takes and holds.

    python -m benchmarks.many_images --images 512 --side 420

Starts the bundled checkpoint's engine and a gateway as `kimi-serve up` does, with a relay between the two that counts
bytes. Four turns, each after the other: the pictures for the first time; the same again; the same and a question after
the answer; the same pictures by file_id. Prints a table and one JSON line. Reading 117,000 tokens takes a CPU of two
cores a quarter of an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import openai
from PIL import Image
from tqdm import tqdm

from benchmarks.elision import CHECKPOINT, Relay, ready
from kimi_serve.launch.family import Family
from kimi_serve.launch.up import free_port

CONTEXT = 131_072
MOST = 512  # pictures of one prompt
LONGEST_S = 7200.0  # for one answer: the gateway's own limit for a first byte is ten minutes
COARSE = 14  # pixels of what a picture shows in colour: blots of many sizes, and grain over them
QUESTION = {"type": "text", "text": "What is in the picture?"}
ANSWER = {"role": "assistant", "content": "Many colours."}
# Sums over all requests, by vLLM: a turn's is the difference. Preparing pictures is in the first alone.
STAGES = {
    "engine: to the first token, s": "vllm:time_to_first_token_seconds_sum",
    "engine: waiting, s": "vllm:request_queue_time_seconds_sum",
    "engine: prefill with tower, s": "vllm:request_prefill_time_seconds_sum",
    "pictures asked of its cache": "vllm:mm_cache_queries_total",
    "pictures found there": "vllm:mm_cache_hits_total",
}

Message = dict[str, Any]


@dataclass(slots=True)
class Turn:
    name: str
    to_gateway: int  # bytes of the body
    to_engine: int  # bytes through the relay, headers among them
    counted: int  # tokens, by the gateway before it asks
    prompt_tokens: int  # by the engine
    cached_tokens: int
    ttft_s: float
    stages: dict[str, float]


@dataclass(frozen=True, slots=True)
class Stack:
    url: str
    relay: Relay
    engine_url: str  # past the relay
    engine: Family
    gateway: Family

    def memory(self) -> dict[str, float]:
        """MiB of both, proportional and resident."""
        found = {}
        for name, family in (("engine", self.engine), ("gateway", self.gateway)):
            for kind in ("Pss", "Rss"):
                found[f"{name} {kind.upper()}"] = round(sum(_mib(pid, kind) for pid in family.members()), 1)
        return found


def picture(number: int, side: int) -> bytes:
    """A JPEG that no other number has."""
    rng = np.random.default_rng([side, number])
    small = rng.integers(0, 256, (-(-side // COARSE), -(-side // COARSE), 3), dtype=np.uint8)
    blots = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(0, 6, (side, side, 1)).astype(np.float32)
    stored = io.BytesIO()
    Image.fromarray((blots + grain).clip(0, 255).astype(np.uint8)).save(stored, "JPEG", quality=85)
    return stored.getvalue()


@asynccontextmanager
async def served(folder: Path, flags: Sequence[str]) -> AsyncIterator[Stack]:
    command = str(Path(sys.executable).parent / "kimi-serve")
    ports = [free_port() for _ in range(3)]
    engine_url, url = (f"http://127.0.0.1:{port}" for port in ports[:2])
    settings = {
        "KIMI_SERVE_FILES__FOLDER": str(folder / "files"),
        "KIMI_SERVE_LISTEN__SETTLE_S": "0",
        "KIMI_SERVE_UPSTREAM__FIRST_BYTE_S": str(LONGEST_S),
        "KIMI_SERVE_UPSTREAM__BETWEEN_FRAMES_S": str(LONGEST_S),
        "KIMI_SERVE_UPSTREAM__TOTAL_S": str(LONGEST_S),
    }
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        argv = [command, "engine", str(CHECKPOINT), "--host", "127.0.0.1", "--port", str(ports[0])]
        argv += ["--max-model-len", str(CONTEXT), "--enable-prompt-tokens-details", *flags]
        engine = stack.enter_context(Family(argv, os.environ, folder / "engine.log"))
        await ready(session, f"{engine_url}/health", engine)
        relay = Relay(ports[2])
        server = await asyncio.start_server(partial(relay.serve, to=ports[0]), "127.0.0.1", relay.port)
        stack.push_async_callback(_closed, server)
        argv = [command, "gateway", "--checkpoint", str(CHECKPOINT), "--port", str(ports[1])]
        argv += ["--engine", f"http://127.0.0.1:{relay.port}"]
        gateway = stack.enter_context(Family(argv, os.environ | settings, folder / "gateway.log"))
        await ready(session, f"{url}/readyz", gateway)
        yield Stack(url, relay, engine_url, engine, gateway)


async def _closed(server: asyncio.Server) -> None:
    server.close()
    await asyncio.sleep(1)  # the gateway has ended: its connections do now, here and at the engine


class Asking:
    """The openai package's client of one stack."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.sent = 0  # bytes of the last body
        http = openai.DefaultAsyncHttpxClient(trust_env=False, event_hooks={"request": [self._measure]})
        url = f"{stack.url}/v1"
        timeout = httpx.Timeout(LONGEST_S, connect=10)
        self.client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http, timeout=timeout)

    async def _measure(self, request: httpx.Request) -> None:
        self.sent = int(request.headers.get("content-length", 0))

    async def turn(self, name: str, messages: list[Message]) -> Turn:
        before, received = await self._metrics(), self.stack.relay.received
        began, ttft, usage = time.perf_counter(), None, None
        answer = await self.client.chat.completions.with_raw_response.create(
            model=CHECKPOINT.name,
            messages=messages,  # type: ignore[arg-type]  # file_id in place of a url is ours
            max_tokens=2,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in answer.parse():
            if ttft is None and chunk.choices and chunk.choices[0].delta.content:
                ttft = time.perf_counter() - began
            usage = chunk.usage or usage
        after = await self._metrics()
        assert ttft is not None, "no token came"
        assert usage is not None, "no usage came"
        details = usage.prompt_tokens_details
        return Turn(
            name,
            self.sent,
            self.stack.relay.received - received,
            int(answer.headers["x-kimi-serve-prompt-tokens"]),
            usage.prompt_tokens,
            (details and details.cached_tokens) or 0,
            round(ttft, 3),
            {stage: round(after[metric] - before[metric], 3) for stage, metric in STAGES.items()},
        )

    async def upload(self, pictures: Sequence[bytes]) -> tuple[list[str], int, float]:
        """The files' ids, bytes of all requests, seconds."""
        began, names, sent = time.perf_counter(), [], 0
        for number, data in enumerate(tqdm(pictures, desc="files", unit="file")):
            kept = await self.client.files.create(file=(f"{number}.jpg", data, "image/jpeg"), purpose="vision")
            names.append(kept.id)
            sent += self.sent
        return names, sent, round(time.perf_counter() - began, 2)

    async def _metrics(self) -> dict[str, float]:
        """Over all labels; nothing was counted yet of what is not there."""
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"{self.stack.engine_url}/metrics", timeout=60)).text
        return {
            metric: sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE))
            for metric in STAGES.values()
        }


def user(urls: Sequence[Message]) -> Message:
    return {"role": "user", "content": [*({"type": "image_url", "image_url": url} for url in urls), QUESTION]}


async def measure(images: int, side: int, folder: Path, flags: Sequence[str]) -> dict[str, object]:
    pictures = [picture(number, side) for number in tqdm(range(images), desc="pictures", unit="picture")]
    assert len(set(pictures)) == images
    inline = [{"url": "data:image/jpeg;base64," + base64.b64encode(data).decode()} for data in pictures]
    async with served(folder, flags) as stack:
        asking = Asking(stack)
        memory, turns = {"before": stack.memory()}, []
        first = user(inline)
        for name, messages in (
            ("first", [first]),
            ("the same again", [first]),
            ("a second turn", [first, ANSWER, {"role": "user", "content": [QUESTION]}]),
        ):
            turns.append(await asking.turn(name, messages))
            memory[name] = stack.memory()
        names, uploaded, seconds = await asking.upload(pictures)
        turns.append(await asking.turn("by file_id", [user([{"file_id": name} for name in names])]))
        memory["by file_id"] = stack.memory()
        await asking.client.close()
    return {
        "images": images,
        "side": side,
        "picture_bytes": sum(map(len, pictures)),
        "uploads": {"bytes": uploaded, "seconds": seconds},
        "turns": [asdict(turn) for turn in turns],
        "memory_mib": memory,
    }


def table(found: dict[str, Any]) -> str:
    turns, memory = found["turns"], found["memory_mib"]
    rows = {
        "body to the gateway, MB": [f"{turn['to_gateway'] / 1e6:.3f}" for turn in turns],
        "to the engine, MB": [f"{turn['to_engine'] / 1e6:.3f}" for turn in turns],
        "tokens, by the gateway": [str(turn["counted"]) for turn in turns],
        "tokens, by the engine": [str(turn["prompt_tokens"]) for turn in turns],
        "of these cached": [str(turn["cached_tokens"]) for turn in turns],
        "to the first token, s": [f"{turn['ttft_s']:.2f}" for turn in turns],
        **{stage: [f"{turn['stages'][stage]:g}" for turn in turns] for stage in STAGES},
        **{f"{what} after, MiB (before: {size:g})": [f"{memory[turn['name']][what]:g}" for turn in turns]
           for what, size in memory["before"].items()},
    }  # fmt: skip
    heading = f"| {found['images']} JPEGs of {found['side']}x{found['side']}"
    lines = [" | ".join([heading, *(turn["name"] for turn in turns)]) + " |", "| --- |" + " ---: |" * len(turns)]
    return "\n".join([*lines, *(f"| {' | '.join([name, *values])} |" for name, values in rows.items())])


def _mib(pid: int, kind: str) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # it ended while we looked
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(f"{kind}:")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, default=MOST, choices=range(1, MOST + 1), metavar="N", help=f"1 to {MOST}"
    )
    parser.add_argument("--side", type=int, default=420, metavar="S", help="pixels of each side")
    parser.add_argument("--engine-flag", action="append", default=[], metavar="FLAG", help="passed on; may be repeated")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(args.images, args.side, Path(folder), args.engine_flag))
    print(table(found), json.dumps(found), sep="\n\n")


if __name__ == "__main__":
    main()
