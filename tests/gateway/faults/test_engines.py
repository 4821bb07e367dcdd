"""Engines that die, hang or vanish in every state of a request: another one answers, or the client is told."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import Served, in_process
from tests.gateway.faults.conftest import Door, Open
from tests.gateway.faults.wires import Wire, wire_to
from tests.waiting import eventually

FAKE = "kimi_serve.testing.fake_engine:create"
LONG = {"upstream__first_byte_s": 600, "upstream__between_frames_s": 600}


def turn(engine: str, **dials: object) -> None:
    assert httpx.put(f"{engine}/dials", json=dials, trust_env=False).status_code == 200


def in_flight(engine: str) -> int:
    return int(httpx.get(f"{engine}/record", trust_env=False).json()["in_flight"])


def kill(engine: Served) -> None:
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)


def events(response: httpx.Response) -> list[str]:
    return [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]


def error_event(response: httpx.Response) -> str:
    assert response.status_code == 200
    *_, last, done = events(response)
    assert done == "[DONE]"
    return str(json.loads(last)["error"]["code"])


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@contextmanager
def frozen(wire: Wire) -> Iterator[None]:
    wire.freeze()
    try:
        yield
    finally:
        wire.live.set()


@contextmanager
def asking(door: Door, count: int = 1, **options: object) -> Iterator[list["Future[httpx.Response]"]]:
    with ThreadPoolExecutor(count) as threads:
        yield [threads.submit(door.chat, **options) for _ in range(count)]


def test_what_an_engine_had_not_begun_to_answer_is_answered_by_another(
    open_door: Open, fake: FakeEngine, engine_url: str
) -> None:
    """Streams have their header by then and no byte more, whole answers have nothing."""
    each = 20  # together more than the few that may be sent again at once for any other reason
    with in_process(FAKE, options={"max_model_len": 8192}) as first, wire_to(port_of(engine_url)) as wire:
        wire.freeze()  # so that all requests are with the first
        door = open_door([first.url, f"http://127.0.0.1:{wire.port}"], **LONG)
        turn(first.url, ttft_s=600.0)
        with asking(door, each, stream=True) as streams, asking(door, each) as answers:
            eventually(lambda: in_flight(first.url) == 2 * each)
            wire.live.set()
            eventually(lambda: door.metric("ready_replicas") == 2)
            kill(first)
            for answer in (*streams, *answers):
                assert answer.result().status_code == 200
                assert " token" in answer.result().text
                assert "error" not in answer.result().text
        assert fake.record.count == 2 * each
        assert door.metric("retries_total") == 2 * each
        door.assert_idle()


def test_an_engine_killed_within_its_answers_ends_them_with_an_error(open_door: Open) -> None:
    with in_process(FAKE, options={"max_model_len": 8192, "itl_s": 0.01, "tokens": 100_000}) as engine:
        door = open_door([engine.url], admission__requests=4, admission__deadline_s=3, **LONG)
        with asking(door, 4, stream=True, max_tokens=8000) as streams:
            eventually(lambda: in_flight(engine.url) == 4)
            with asking(door, 2) as queued:
                eventually(lambda: door.metric("waiting_requests") == 2)
                eventually(lambda: door.metric("time_to_first_token_seconds_count") == 0)
                kill(engine)
                assert [error_event(stream.result()) for stream in streams] == ["upstream_error"] * 4
                for answer in queued:
                    # Nobody is left for it: it was refused a connection, or waited until its deadline.
                    response = answer.result()
                    assert response.json()["error"]["code"] in ("upstream_error", "queue_timeout", "no_replica")
                    assert response.status_code in (502, 503)
        assert door.metric("broken_streams_total") == 4
        eventually(lambda: not door.is_ready())
        assert door.http.get("/readyz").status_code == 503
        door.assert_idle()


@pytest.mark.parametrize(
    ("dials", "stream", "code"),
    [
        ({"fail": "hang_before_headers"}, True, "upstream_timeout"),
        ({"ttft_s": 600.0}, True, "upstream_timeout"),
        ({"fail": "hang_mid_stream", "after_tokens": 3}, True, "upstream_timeout"),
        ({"fail": "die_mid_stream", "after_tokens": 3}, True, "upstream_error"),
        ({"fail": "malformed", "after_tokens": 3}, True, "upstream_error"),
        ({"fail": "malformed", "after_tokens": 0}, True, "upstream_error"),
        ({"fail": "refuse"}, True, "upstream_error"),
        ({"fail": "refuse"}, False, "upstream_error"),
    ],
)
def test_an_engine_that_hangs_dies_or_talks_rubbish_is_a_clear_error(
    hasty: Door, fake: FakeEngine, dials: dict[str, object], stream: bool, code: str
) -> None:
    for _ in range(20):  # good ones, so that this failure is not the one that ejects the engine
        assert hasty.chat(max_tokens=1).status_code == 200
    fake.dials = fake.dials.turned(dials)
    response = hasty.chat(stream=stream)
    if response.status_code == 200:
        assert error_event(response) == code
    else:
        assert response.status_code == {"upstream_error": 502, "upstream_timeout": 504}[code]
        assert response.json()["error"]["code"] == code
    hasty.assert_idle()


def test_an_engine_that_is_overloaded_says_when_to_come_back(door: Door, fake: FakeEngine) -> None:
    fake.dials = fake.dials.turned({"fail": "503"})
    response = door.chat()
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1


def test_a_stream_whose_engine_vanishes_without_a_word_is_a_timeout(hasty: Door, fake: FakeEngine, wire: Wire) -> None:
    fake.dials = fake.dials.turned({"itl_s": 0.01, "tokens": 100_000})
    with asking(hasty, stream=True, max_tokens=8000) as (stream,):
        eventually(lambda: fake.record.in_flight == 1)
        with frozen(wire):
            assert error_event(stream.result()) == "upstream_timeout"


def test_a_request_whose_engine_has_vanished_is_a_timeout(hasty: Door, wire: Wire) -> None:
    with frozen(wire):
        response = hasty.chat(stream=True)
        code = error_event(response) if response.status_code == 200 else response.json()["error"]["code"]
        assert code == "upstream_timeout"


def test_a_body_that_nobody_takes_ends_at_the_limit_of_an_engines_silence(hasty: Door, wire: Wire) -> None:
    """Without a stream an engine may be silent for an hour; one whose machine takes no byte is not working."""
    with frozen(wire):
        response = hasty.chat(unknown="x" * (8 << 20))
    assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")
    assert "unreachable_s" in response.json()["error"]["message"]
