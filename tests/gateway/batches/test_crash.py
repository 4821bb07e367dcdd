"""kill -9 at any moment: every line of a batch is answered exactly once."""

import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import openai
import pytest

from kimi_serve.gateway.media import data_urls
from kimi_serve.launch.up import free_port
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import Served, in_process, in_thread
from tests.gateway.batches.conftest import ENDED, Json, chat_body, ended, lines_of, order, read
from tests.gateway.batches.nursery import gateway, kill
from tests.gateway.test_gateway import png

LINES = int(os.environ.get("KIMI_SERVE_BATCH_LINES", "300"))
CONCURRENCY = 16
KILLS = int(os.environ.get("KIMI_SERVE_BATCH_KILLS", "5"))
FAKE = "kimi_serve.testing.fake_engine:create"


class Gateways:
    """One gateway after the other on one folder."""

    def __init__(self, stack: ExitStack, checkpoint: Path, tmp_path: Path, engine: str) -> None:
        self._stack, self._checkpoint, self._tmp_path, self._engine = stack, checkpoint, tmp_path, engine
        self._port = free_port()
        http = stack.enter_context(httpx.Client(trust_env=False))
        url = f"http://127.0.0.1:{self._port}/v1"
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=http)
        self.folder = tmp_path / "files"
        self.process = self.start()

    def start(self) -> BaseProcess:
        log, engines = self._tmp_path / "gateway.log", {"urls": [self._engine], "check_s": 0.2}
        batches = {"concurrency": CONCURRENCY, "retry_s": 0.1}
        one = gateway(
            log,
            self._port,
            checkpoint=self._checkpoint,
            replicas=engines,
            files={"folder": self.folder},
            batches=batches,
        )
        self.process = self._stack.enter_context(one)
        return self.process

    def kill(self) -> None:
        kill(self.process)

    def end(self) -> int | None:
        """In order; the exit code."""
        self.process.terminate()
        self.process.join()
        return self.process.exitcode

    def lines_left(self) -> int:
        with sqlite3.connect(self.folder / "archive.sqlite") as database:
            (count,) = database.execute("SELECT count(*) FROM lines").fetchone()
        database.close()
        return int(count)


def bodies(client: openai.OpenAI) -> list[Json]:
    """Texts, and a picture in every third, by its bytes or by its id."""
    url = png(280, 140)
    kept = client.files.create(file=("x.png", data_urls.decode(url, max_bytes=1 << 20)), purpose="vision")
    pictures: list[object] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "file", "file": {"file_id": kept.id}},
    ]
    texts = [{"type": "text", "text": f"Number {number}"} for number in range(LINES)]
    return [chat_body([text, pictures[number % 2]] if number % 3 == 0 else [text]) for number, text in enumerate(texts)]


def assert_every_line_once(client: openai.OpenAI, batch_id: str) -> None:
    done = client.batches.retrieve(batch_id)
    assert (done.status, done.error_file_id) == ("completed", None)
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": LINES, "completed": LINES, "failed": 0}
    told = read(client, done.output_file_id)
    assert [line["custom_id"] for line in told] == [f"line-{number}" for number in range(LINES)]
    assert all(line["response"]["status_code"] == 200 for line in told)  # type: ignore[index]


@pytest.fixture
def engine() -> Iterator[tuple[FakeEngine, str]]:
    double = FakeEngine(Dials(max_model_len=8192, ttft_s=0.02, tokens=3))
    with in_thread(double) as served:
        yield double, served.url


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_gateway_is_killed_at_random_points(
    checkpoint: Path, tmp_path: Path, engine: tuple[FakeEngine, str], seed: int
) -> None:
    double, url = engine
    chance = random.Random(seed)
    with ExitStack() as stack:
        gateways = Gateways(stack, checkpoint, tmp_path, url)
        batch = order(gateways.client, lines_of(bodies(gateways.client)))
        for _ in range(KILLS):
            # So many lines asked by this gateway, and a moment more: between the answer and its place on the disk.
            wait_until_asked(double, double.record.count + chance.randint(1, LINES // (KILLS + 1)))
            time.sleep(chance.random() * 0.05)
            gateways.kill()
            gateways.start()
        assert ended(gateways.client, batch.id, 1800).status == "completed"
        assert_every_line_once(gateways.client, batch.id)
        assert gateways.lines_left() == 0
    assert LINES <= double.record.count <= LINES + KILLS * CONCURRENCY  # only what was under way is asked again


def wait_until_asked(engine: FakeEngine, count: int) -> None:
    deadline = time.monotonic() + 600
    while engine.record.count < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_in_any_state_loses_nothing(checkpoint: Path, tmp_path: Path, engine: tuple[FakeEngine, str]) -> None:
    """In the moment in which each state is first seen: while lines are read, answered, and written to files."""
    with ExitStack() as stack:
        gateways = Gateways(stack, checkpoint, tmp_path, engine[1])
        batch = order(gateways.client, lines_of(bodies(gateways.client)))
        gateways.kill()
        seen: set[str] = set()
        gateways.start()
        while (status := gateways.client.batches.retrieve(batch.id).status) not in ENDED:
            if status not in seen:
                seen.add(status)
                gateways.kill()
                gateways.start()
        assert "in_progress" in seen
        assert_every_line_once(gateways.client, batch.id)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_orderly_end_waits_for_no_batch_and_loses_nothing(
    checkpoint: Path, tmp_path: Path, engine: tuple[FakeEngine, str]
) -> None:
    with ExitStack() as stack:
        gateways = Gateways(stack, checkpoint, tmp_path, engine[1])
        batch = order(gateways.client, lines_of(bodies(gateways.client)))
        wait_until_asked(engine[0], LINES // 4)
        assert gateways.end() == 0
        gateways.start()
        assert ended(gateways.client, batch.id, 1800).status == "completed"
        assert_every_line_once(gateways.client, batch.id)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_engine_is_killed_at_random_points(checkpoint: Path, tmp_path: Path) -> None:
    chance = random.Random(3)
    options = {"max_model_len": 8192, "ttft_s": 0.05, "tokens": 3}
    with ExitStack() as stack:
        engine = stack.enter_context(in_process(FAKE, options=options))
        gateways = Gateways(stack, checkpoint, tmp_path, engine.url)
        batch = order(gateways.client, lines_of(bodies(gateways.client)))
        for _ in range(3):
            before = completed(gateways.client, batch.id)
            enough = before + chance.randint(1, LINES // 5)
            while LINES > completed(gateways.client, batch.id) < enough:
                time.sleep(0.02)
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            engine = again(stack, engine, options)
        assert ended(gateways.client, batch.id, 1800).status == "completed"
        assert_every_line_once(gateways.client, batch.id)


def completed(client: openai.OpenAI, batch_id: str) -> int:
    counts = client.batches.retrieve(batch_id).request_counts
    return 0 if counts is None else counts.completed


def again(stack: ExitStack, dead: Served, options: dict[str, object]) -> Served:
    deadline = time.monotonic() + 60
    while True:
        try:
            return stack.enter_context(in_process(FAKE, options=options, port=dead.port))
        except OSError:  # it is not quite dead
            assert time.monotonic() < deadline
            time.sleep(0.05)
