"""Files that mean harm cost their own request only. KIMI_SERVE_FUZZ_FILES sets the number of mutated copies."""

from __future__ import annotations

import asyncio
import threading
from functools import cache
from pathlib import Path

import httpx
import pytest

from kimi_serve.gateway.expansion import documents
from kimi_serve.gateway.expansion.documents import Asked
from kimi_serve.gateway.expansion.room import Room
from kimi_serve.gateway.expansion.workers import Workers
from kimi_serve.gateway.prompt_cost import Meter
from kimi_serve.gateway.settings import Documents
from kimi_serve.protocol.files import Image
from tests.gateway.conftest import Front, Start
from tests.gateway.expansion.corpus import LANDSCAPE, as_url, endless, mutated, pdf, swelling
from tests.gateway.expansion.outcomes import COPIES, TIMEOUT, outcomes, processes
from tests.gateway.test_metrics import sample
from tests.waiting import eventually

SLOW = cache(endless)
LARGE = cache(swelling)


def ask(front: Front, data: bytes, **options: object) -> httpx.Response:
    return front.chat([{"type": "file", "file": {"file_data": as_url(data)}, **options}], max_tokens=4)


@pytest.mark.parametrize("limit", [{"timeout_s": 2.0}, {"cpu_s": 1}], ids=["by the clock", "by the processor"])
def test_a_document_that_takes_for_ever_is_ended(start: Start, limit: dict[str, float]) -> None:
    front = start(documents=limit)
    answer = ask(front, SLOW())
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (400, "document_too_large"), answer.text
    assert "takes longer to read than it may" in answer.json()["error"]["message"]
    assert sample(front, "kimi_serve_ended_workers_total", reason="time") == 1
    front.assert_idle()


def test_a_document_that_swells_ends_its_own_process_only(start: Start) -> None:
    front = start(workers={"memory_bytes": 2**28})
    answer = ask(front, LARGE())
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.headers["x-kimi-serve-reason"] in ("document_too_large", "invalid_document")
    assert ask(front, pdf(1)).status_code == 200
    front.assert_idle()


def test_others_are_answered_while_a_document_is_read(start: Start) -> None:
    front = start(documents={"timeout_s": 4.0})
    slow = threading.Thread(target=ask, args=(front, SLOW()))
    slow.start()
    eventually(lambda: sample(front, "kimi_serve_busy_workers") == 1)
    assert front.chat("hello").status_code == 200
    assert ask(front, pdf(1)).status_code == 200
    assert slow.is_alive()
    slow.join()
    front.assert_idle()


def test_where_all_processes_are_busy_a_file_is_told_to_come_back(start: Start) -> None:
    front = start(workers={"processes": 1, "wait_s": 0.2}, documents={"timeout_s": 4.0})
    slow = threading.Thread(target=ask, args=(front, SLOW()))
    slow.start()
    eventually(lambda: sample(front, "kimi_serve_busy_workers") == 1)
    answer = ask(front, pdf(1))
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (503, "media_busy")
    assert int(answer.headers["retry-after"]) >= 1
    slow.join()
    assert ask(front, pdf(1)).status_code == 200


def test_a_client_that_leaves_ends_its_files_process(start: Start) -> None:
    front = start()
    part = {"type": "file", "file": {"file_data": as_url(SLOW())}}
    front.http.timeout = 1.5
    with pytest.raises(httpx.ReadTimeout):
        front.chat([part])
    front.http.timeout = 30.0
    eventually(lambda: sample(front, "kimi_serve_busy_workers") == 0)
    eventually(lambda: len(processes()) == 1)  # the one that waits for the next file
    front.assert_idle()


def test_no_process_is_started_before_the_first_file_and_none_outlives_the_gateway(checkpoint: Path) -> None:
    async def live() -> tuple[int, int]:
        async with Workers(2, wait_s=10) as workers:
            before = len(processes())
            await read(workers, pdf(1), Meter.from_directory(checkpoint))
            return before, len(processes())

    assert asyncio.run(live()) == (0, 1)
    assert processes() == []


def test_a_process_has_nothing_of_the_gateways_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMI_SERVE_KEYS__SALT_SECRET", "very-secret")
    front = start()
    assert ask(front, pdf(1)).status_code == 200
    (waiting,) = processes()
    names = {one.partition(b"=")[0] for one in (waiting / "environ").read_bytes().split(b"\0") if one}
    assert names == {b"PATH", b"PYTHONPATH", b"LC_ALL"}


async def read(workers: Workers, data: bytes, meter: Meter) -> int:
    """The number of pages shown."""
    rules = Documents(timeout_s=30.0, cpu_s=10)
    limits = documents.limits(rules, 2**30, 2**26)
    async with workers.over(documents.READER, limits) as worker:
        shown = documents.show(worker, limits, data, Asked(None, True), rules, meter, Room(meter, 512))
        return sum([isinstance(one, Image) async for one in shown])


@pytest.mark.timeout(TIMEOUT)
def test_a_mutated_document_is_shown_or_refused_and_nothing_hangs(checkpoint: Path) -> None:
    """Each within its limits; a process that crashes is counted, and the next file has a sound one."""
    meter = Meter.from_directory(checkpoint)
    sound = [pdf(2), pdf(1, sizes=(LANDSCAPE,), photograph=True), pdf(1, filled_in=True), pdf(1, password="")]
    seen = outcomes(lambda workers, number: read(workers, mutated(sound[number % len(sound)], number), meter))
    assert seen["shown"] > COPIES // 5
    assert seen["invalid"] > 0
    assert seen["nothing"] == seen["crash"] == 0
    assert processes() == []
