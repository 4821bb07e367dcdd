"""What needs an engine of its own: the costliest images with default flags, then its being killed at work.

The encoder's budget follows the checkpoint. Of a killed engine each client is told, and the gateway is no longer ready.
"""

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kimi_serve.gateway.app import create_app
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.settings import read
from kimi_serve.inputs.config import load_checkpoint
from kimi_serve.testing.serving import in_thread
from tests.stack import pictures
from tests.stack.served import CONTEXT, NAME, Server
from tests.waiting import eventually

CHAT = "/v1/chat/completions"
LONG = {"max_tokens": 6000, "ignore_eos": True, "temperature": 0}  # minutes of work
WORKS_IN = 60.0  # seconds until a request has reached the engine
BROKEN = ("upstream_error", "upstream_timeout")
LIMIT = 16_384  # patches of an image, as in Thinking-2506
LARGEST = (1792, 1792)  # 4096 tokens
COSTLY = (500, 6000)  # more than LIMIT patches: scaled down, then padded


def ask(url: str, **options: object) -> httpx.Response:
    return httpx.post(url + CHAT, json=body(**options), timeout=300, trust_env=False)


def listen(url: str, heard: list[str]) -> int:
    """Add each event of a stream as it comes; the status at its end."""
    with httpx.stream("POST", url + CHAT, json=body(stream=True), timeout=300, trust_env=False) as response:
        heard.extend(line[6:] for line in response.iter_lines() if line.startswith("data: "))
        return response.status_code


def body(**options: object) -> dict[str, object]:
    return {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], **LONG, **options}


@pytest.fixture(scope="module")
def large(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large") / "Kimi-VL-Instruct"
    shutil.copytree(checkpoint, directory)
    file = directory / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "in_token_limit": LIMIT}))
    return directory


@pytest.fixture(scope="module")
def server(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Killed by the last test: the other files' engine must live."""
    log = tmp_path_factory.mktemp("own") / "engine.log"
    with Server(large, ["--max-model-len", str(CONTEXT)], log, {"VLLM_MLA_DISABLE": "1"}) as started:
        yield started


def test_the_largest_images_are_served_with_default_flags(server: Server, large: Path) -> None:
    geometry = load_checkpoint(large).image.geometry
    text = server.chat("").prompt_tokens
    for sizes in ([LARGEST], [COSTLY], [(1260, 1260), (1260, 1260), (1288, 1260)]):
        reply = server.chat([pictures.part(pictures.plain(*size)) for size in sizes], max_tokens=2)
        assert reply.status == 200, reply.body
        images = sum(geometry.num_tokens(*size) + 5 for size in sizes)  # five around each
        assert reply.prompt_tokens == text + images
        assert images > 2048 // 2


def test_every_client_of_a_killed_engine_is_told(server: Server, large: Path) -> None:
    opened: list[Gateway] = []
    settings = read(
        None,
        checkpoint=large,
        replicas={"urls": [server.url], "check_s": 0.5},
        admission={"requests": 3, "deadline_s": 10},
        stream={"keep_alive_s": 1},
    )
    with in_thread(create_app(settings, opened.append)) as front, ThreadPoolExecutor(8) as threads:
        try:
            kill_and_listen(server, opened[0], front.url, threads)
        finally:
            server.kill()  # or those who ask would wait for all of their answers


def kill_and_listen(server: Server, gateway: Gateway, url: str, threads: ThreadPoolExecutor) -> None:
    eventually(lambda: gateway.fleet.ready == 1, WORKS_IN)
    events: list[str] = []
    decoding, whole = threads.submit(listen, url, events), threads.submit(ask, url)
    eventually(lambda: working(gateway, 2), WORKS_IN)
    eventually(lambda: len(events) > 3)  # the stream is past its prefill
    prompt = [{"role": "user", "content": "word " * 500}]
    prefill = threads.submit(ask, url, stream=True, messages=prompt)
    eventually(lambda: working(gateway, 3), WORKS_IN)
    queued = [threads.submit(ask, url, stream=stream) for stream in (True, False)]
    eventually(lambda: count(gateway, "waiting_requests") == 2, WORKS_IN)
    server.kill()
    began = time.monotonic()

    assert decoding.result() == 200
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] in BROKEN
    assert whole.result().status_code in (502, 504)
    codes = [code_of(answer.result()) for answer in (prefill, *queued)]
    assert set(codes) <= {*BROKEN, "no_replica", "queue_timeout"}
    print(f"{len(events)} events, then an error; {codes}; all were told within {time.monotonic() - began:.1f} s")

    assert count(gateway, "broken_streams_total") >= 1
    eventually(lambda: httpx.get(f"{url}/readyz", trust_env=False).status_code == 503, WORKS_IN)
    for name in ("outstanding_requests", "outstanding_cost_tokens", "waiting_requests", "in_flight_bytes"):
        eventually(lambda name=name: count(gateway, name) == 0, WORKS_IN)
    assert [replica.outstanding for replica in gateway.fleet.snapshot()] == [0]


def working(gateway: Gateway, requests: int) -> bool:
    return count(gateway, "outstanding_requests") == requests


def events_of(response: httpx.Response) -> list[str]:
    return [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]


def code_of(response: httpx.Response) -> str:
    if response.status_code != 200:
        return str(response.json()["error"]["code"])
    events = events_of(response)
    return str(json.loads(events[-2])["error"]["code"])


def count(gateway: Gateway, name: str) -> float:
    """The sum of a metric over its labels."""
    gateway.measure()
    families = gateway.metrics.registry.collect()
    samples = (sample for family in families for sample in family.samples if sample.name == f"kimi_serve_{name}")
    return sum(sample.value for sample in samples)
