"""What a gateway adds, beside direct access and beside peers, all in front of the same fake engine, in turns.

    python benchmarks/overhead.py --rounds 5                                   # direct and ours
    python benchmarks/overhead.py --peer litellm=http://127.0.0.1:4000 ...     # and what already listens there

Prints one JSON line: for each target and workload the median over the rounds of p50 and p99 in milliseconds at a fixed
rate, of requests a second with 16 connections, and of SSE frames a second. The engine and this client run on the first
core; start peers with `taskset -c 1`, as this starts the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp
from PIL import Image
from tqdm import tqdm

from kimi_serve.testing.serving import in_process

MODEL = "kimi-vl"
CHECKPOINT = Path(__file__).parents[1] / "kimi_serve" / "assets" / "kimi-vl-nano"
GATEWAY_CORE = "1"
FRAMES = 2000


def noise_png(kilobytes: int) -> str:
    """A picture of about that many bytes: noise does not compress."""
    side = int((kilobytes * 1024 / 3) ** 0.5)
    image = Image.frombytes("RGB", (side, side), random.Random(0).randbytes(side * side * 3))
    with tempfile.SpooledTemporaryFile() as file:
        image.save(file, "PNG")
        file.seek(0)
        return "data:image/png;base64," + base64.b64encode(file.read()).decode()


def body(content: object, **more: object) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}], **more}).encode()


def workloads() -> dict[str, bytes]:
    def pictures(count: int, kilobytes: int) -> list[dict[str, object]]:
        return [{"type": "image_url", "image_url": {"url": noise_png(kilobytes)}}] * count

    return {
        "text": body("What is the capital of France? " * 8),
        "one 200 KB image": body(pictures(1, 200)),
        "64 images of 100 KB": body(pictures(64, 100)),
    }


@contextmanager
def gateway(engine: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "kimi_serve.cli", "gateway", "--engine", engine, "--port", str(port)]
    command = ["taskset", "-c", GATEWAY_CORE, *command, "--checkpoint", str(CHECKPOINT)]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ready(session: aiohttp.ClientSession, url: str, key: str) -> None:
    for _ in range(600):
        try:
            async with session.post(f"{url}/v1/chat/completions", data=body("x"), headers=headers(key)) as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit(f"{url} gives no answer")


def headers(key: str) -> dict[str, str]:
    return {"content-type": "application/json", "authorization": f"Bearer {key}"}


async def at_rate(
    session: aiohttp.ClientSession, url: str, data: bytes, key: str, rate: float, seconds: float
) -> list[float]:
    """Latencies in milliseconds of requests sent on time, whatever became of those before."""
    taken: list[float] = []

    async def one(at: float) -> None:
        async with session.post(f"{url}/v1/chat/completions", data=data, headers=headers(key)) as answer:
            await answer.read()
            assert answer.status == 200, await answer.text()
        taken.append((time.perf_counter() - at) * 1000)

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(due))
    return taken


async def flat_out(session: aiohttp.ClientSession, url: str, data: bytes, key: str, seconds: float) -> float:
    """Requests a second over 16 connections."""
    end, done = time.perf_counter() + seconds, 0

    async def worker() -> None:
        nonlocal done
        while time.perf_counter() < end:
            async with session.post(f"{url}/v1/chat/completions", data=data, headers=headers(key)) as answer:
                await answer.read()
            done += 1

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(16):
            tasks.create_task(worker())
    return done / (time.perf_counter() - began)


async def frames(session: aiohttp.ClientSession, url: str, key: str, streams: int = 8) -> float:
    """SSE frames a second over 8 streams."""
    data = body("x", stream=True, max_tokens=FRAMES)

    async def one() -> int:
        seen = 0
        async with session.post(f"{url}/v1/chat/completions", data=data, headers=headers(key)) as answer:
            async for chunk in answer.content.iter_any():
                seen += chunk.count(b"data: ")
        return seen

    began = time.perf_counter()
    counts = await asyncio.gather(*(one() for _ in range(streams)))
    return sum(counts) / (time.perf_counter() - began)


async def measure(engine: str, targets: dict[str, tuple[str, str]], args: argparse.Namespace) -> dict[str, object]:
    found: dict[str, dict[str, list[float]]] = {name: {} for name in targets}
    made = workloads()
    bar = tqdm(total=args.rounds * len(targets) * (len(made) + 1), unit="run")
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2), trust_env=False
    ) as session:
        for url, key in targets.values():
            await ready(session, url, key)
        for _ in range(args.rounds):
            for name, data in made.items():
                await session.put(f"{engine}/dials", json={"tokens": 16})
                rate = args.rate if name != "64 images of 100 KB" else args.rate / 10
                for target, (url, key) in targets.items():
                    taken = sorted(await at_rate(session, url, data, key, rate, args.seconds))
                    note = found[target]
                    note.setdefault(f"{name}: p50 ms", []).append(statistics.median(taken))
                    note.setdefault(f"{name}: p99 ms", []).append(taken[int(len(taken) * 0.99)])
                    note.setdefault(f"{name}: requests/s", []).append(
                        await flat_out(session, url, data, key, args.seconds)
                    )
                    bar.update()
            await session.put(f"{engine}/dials", json={"tokens": FRAMES})
            for target, (url, key) in targets.items():
                found[target].setdefault("frames/s", []).append(await frames(session, url, key))
                bar.update()
    bar.close()
    return {name: {k: round(statistics.median(v), 2) for k, v in note.items()} for name, note in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL[,KEY]", help="a gateway that listens")
    parser.add_argument("--engine-port", type=int, help="use a fake engine that listens there, as the peers do")
    args = parser.parse_args()
    os.sched_setaffinity(0, {0})
    with ExitStack() as stack:
        if args.engine_port:
            engine = f"http://127.0.0.1:{args.engine_port}"
        else:
            engine = stack.enter_context(in_process("kimi_serve.testing.fake_engine:create")).url
        targets = {"direct": (engine, "none"), "ours": (stack.enter_context(gateway(engine)), "none")}
        for peer in args.peer:
            name, _, rest = peer.partition("=")
            url, _, key = rest.partition(",")
            targets[name] = (url, key or "none")
        print(json.dumps(asyncio.run(measure(engine, targets, args))))


if __name__ == "__main__":
    main()
