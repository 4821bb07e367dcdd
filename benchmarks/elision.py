"""Turn 40 of an agent's conversation of 40 screenshots, with and without leaving out what the engine holds, in turns.

    python -m benchmarks.elision --rounds 7

Starts the bundled checkpoint, and two gateways in front of it that differ in `elision.enabled`. Between each and the
engine a relay counts bytes. Turns 1 to 39 go through the first, so the engine's caches are equally warm for both; every
measured turn 40 has a new last screenshot. Prints one JSON line: medians over the rounds of the bytes that reached the
engine and of the seconds to the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
from PIL import Image, ImageDraw
from tqdm import tqdm

from kimi_serve.launch.family import Family
from kimi_serve.launch.up import free_port

CHECKPOINT = Path(__file__).parents[1] / "kimi_serve" / "assets" / "kimi-vl-nano"
SCREEN = (800, 600)  # 638 tokens: forty fit the checkpoint's context
TURNS = 40
STARTS_WITHIN_S = 400.0
KINDS = ("with", "without")


@dataclass(slots=True)
class Relay:
    """A port in front of the engine; `received` are bytes on their way to it."""

    port: int = 0
    received: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: int) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", to)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, back, counts=True))
                tasks.create_task(self._pump(there, writer, counts=False))
        except* OSError:
            pass  # one side is gone, and so is the other now
        finally:
            back.close()
            writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, counts: bool) -> None:
        while chunk := await source.read(1 << 18):
            self.received += len(chunk) if counts else 0
            sink.write(chunk)
            await sink.drain()
        sink.close()


def screenshot(seed: int) -> str:
    """A window with text and a photograph, as a PNG of some 280 KB, as a data URL."""
    rng = random.Random(seed)
    image = Image.new("RGB", SCREEN, (245, 246, 248))
    draw = ImageDraw.Draw(image)
    for line in range(34):
        words = " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(14))
        draw.text((16, 16 + 17 * line), words, fill=(30, 30, 40))
    image.paste(Image.frombytes("RGB", (256, 256), rng.randbytes(256 * 256 * 3)), (520, 40))
    stored = io.BytesIO()
    image.save(stored, "PNG")
    return "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()


def conversation(screens: list[str], model: str) -> bytes:
    messages: list[dict[str, object]] = []
    for number, url in enumerate(screens):
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"Step {number + 1}."}]
        messages += [{"role": "user", "content": parts}, {"role": "assistant", "content": "Click the button."}]
    body = {
        "model": model,
        "messages": messages[:-1],
        "max_tokens": 2,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    return json.dumps(body).encode()


async def ttft(session: aiohttp.ClientSession, url: str, body: bytes) -> float:
    """Seconds from the request's first byte to the first token's."""
    began, found, seen = time.perf_counter(), None, b""
    headers = {"content-type": "application/json"}
    async with session.post(f"{url}/v1/chat/completions", data=io.BytesIO(body), headers=headers) as answer:
        async for chunk in answer.content.iter_any():
            seen += chunk
            if found is None and seen.count(b"data: ") > 1:  # the first frame names the role
                found = time.perf_counter() - began
    if answer.status != 200 or found is None or b'"error"' in seen:
        raise SystemExit(f"{answer.status}: {seen[:2000]!r}")
    return found


async def ready(session: aiohttp.ClientSession, url: str, family: Family) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            async with session.get(url) as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        if family.exit_code is not None or time.monotonic() > deadline:
            raise SystemExit(f"{url} does not answer:\n{family.log.read_text()[-4000:]}")
        await asyncio.sleep(0.3)


@asynccontextmanager
async def fronts(session: aiohttp.ClientSession, folder: Path) -> AsyncIterator[dict[str, tuple[str, Relay]]]:
    """The engine, and for each kind a gateway's URL with the relay behind it."""
    environ = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = str(Path(sys.executable).parent / "kimi-serve")
    async with AsyncExitStack() as stack:
        port = free_port()
        argv = [command, "engine", str(CHECKPOINT), "--host", "127.0.0.1", "--port", str(port)]
        engine = stack.enter_context(Family(argv, environ, folder / "engine.log"))
        await ready(session, f"http://127.0.0.1:{port}/health", engine)
        found = {}
        for kind in KINDS:
            relay = Relay(free_port())
            server = await asyncio.start_server(partial(relay.serve, to=port), "127.0.0.1", relay.port)
            stack.push_async_callback(_closed, server)
            url = f"http://127.0.0.1:{free_port()}"
            argv = [command, "gateway", "--checkpoint", str(CHECKPOINT), "--port", url.rpartition(":")[2]]
            argv += ["--engine", f"http://127.0.0.1:{relay.port}"]
            on = {"KIMI_SERVE_ELISION__ENABLED": str(kind == "with").lower()}
            gateway = stack.enter_context(Family(argv, environ | on, folder / f"{kind}.log"))
            await ready(session, f"{url}/readyz", gateway)
            found[kind] = url, relay
        yield found


async def _closed(server: asyncio.Server) -> None:
    server.close()


async def measure(rounds: int, folder: Path) -> dict[str, object]:
    figures: dict[str, dict[str, list[float]]] = {kind: {"bytes": [], "ttft_s": []} for kind in KINDS}
    screens = [screenshot(number) for number in range(TURNS - 1)]
    sizes = []
    client = aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(600))
    async with client as session, fronts(session, folder) as found:
        model = CHECKPOINT.name
        for turn in tqdm(range(1, TURNS), desc="turns", unit="turn"):
            await ttft(session, found["with"][0], conversation(screens[:turn], model))
        for number in tqdm(range(rounds + 1), desc="rounds", unit="round"):
            for place, kind in enumerate(KINDS if number % 2 else KINDS[::-1]):
                body = conversation([*screens, screenshot(1000 + 2 * number + place)], model)
                url, relay = found[kind]
                before = relay.received
                seconds = await ttft(session, url, body)
                if number:  # the first round warms connections
                    figures[kind]["bytes"].append(relay.received - before)
                    figures[kind]["ttft_s"].append(seconds)
                    sizes.append(len(body))
    told: dict[str, object] = {
        kind: {name: round(statistics.median(values), 4) for name, values in each.items()}
        for kind, each in figures.items()
    }
    spread = {kind: [round(min(f["ttft_s"]), 3), round(max(f["ttft_s"]), 3)] for kind, f in figures.items()}
    return {**told, "ttft_s from to": spread, "client's bytes": statistics.median(sizes), "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(args.rounds, Path(folder)))))


if __name__ == "__main__":
    main()
