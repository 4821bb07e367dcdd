"""The fake engine over real sockets: vLLM's shapes, its dials, its failures, and what it remembers."""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

from kimi_serve.protocol.sse import DONE, Splitter, data_of
from kimi_serve.testing.answers import OUR_CLASS
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.record import KEPT_REQUESTS
from kimi_serve.testing.serving import Served, in_thread
from tests.waiting import eventually

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
BROKEN = (ConnectionError, http.client.RemoteDisconnected, http.client.IncompleteRead)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeEngine, Served]]:
    engine = FakeEngine()
    with in_thread(engine) as served:
        yield engine, served


@pytest.fixture
def engine(running: tuple[FakeEngine, Served]) -> FakeEngine:
    engine, _ = running
    engine.dials = Dials()
    engine.record.clear()
    return engine


@pytest.fixture
def served(running: tuple[FakeEngine, Served], engine: FakeEngine) -> Served:
    return running[1]


def call(
    served: Served, method: str, path: str, body: object = None, dials: object = None, timeout: float = 5
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=timeout)
    try:
        headers = {} if dials is None else {"x-fake-engine": json.dumps(dials)}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def post(served: Served, body: object, dials: object = None, path: str = CHAT) -> tuple[int, bytes]:
    return call(served, "POST", path, body, dials)


def chunks(stream: bytes) -> list[dict[str, object]]:
    frames = Splitter().feed(stream)
    assert frames.pop() == DONE
    return [json.loads(data_of(frame) or b"") for frame in frames]


def test_a_chat_stream_is_role_contents_reason_usage_and_done(served: Served) -> None:
    request = {"messages": [], "stream": True, "stream_options": {"include_usage": True}}
    status, stream = post(served, request, {"tokens": 3, "text": "ü", "prompt_tokens": 7})
    assert status == 200
    role, *contents, closing, usage = chunks(stream)
    assert [chunk["choices"][0]["delta"] for chunk in (role, *contents, closing)] == [
        {"role": "assistant", "content": ""},
        {"content": "ü"},
        {"content": "ü"},
        {"content": "ü"},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in (role, *contents, closing)] == [None, None, None, "stop"]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3}
    assert role["object"] == "chat.completion.chunk"
    assert len({chunk["id"] for chunk in (role, *contents, closing, usage)}) == 1


def test_usage_is_streamed_only_to_who_asks_for_it(served: Served) -> None:
    _, stream = post(served, {"stream": True}, {"tokens": 2})
    assert b"usage" not in stream
    assert len(chunks(stream)) == 3


def test_a_completion_stream_has_text_and_no_role(served: Served) -> None:
    _, stream = post(served, {"prompt": "x", "stream": True}, {"tokens": 2, "text": "a"}, COMPLETION)
    first, last = chunks(stream)
    assert first["object"] == "text_completion"
    assert [first["choices"][0]["text"], last["choices"][0]["text"]] == ["a", "a"]
    assert last["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("path", "said"), [(CHAT, ("message", "content")), (COMPLETION, ("text",))])
def test_a_whole_answer_has_the_text_and_the_usage(served: Served, path: str, said: tuple[str, ...]) -> None:
    status, body = post(served, {}, {"tokens": 3, "text": "ab", "prompt_tokens": 4}, path)
    answer = json.loads(body)
    text = answer["choices"][0]
    for key in said:
        text = text[key]
    assert (status, text) == (200, "ababab")
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 7, "completion_tokens": 3}


def test_max_tokens_ends_an_answer_with_length(served: Served) -> None:
    answer = json.loads(post(served, {"max_tokens": 2}, {"tokens": 9})[1])
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_request_of_megabytes_is_answered_as_it_asks(served: Served) -> None:
    request = {"image": "A" * 300_000, "stream": True, "stream_options": {"include_usage": True}}
    assert chunks(post(served, request, {"tokens": 1})[1])[-1]["usage"] is not None
    assert b"data:" not in post(served, {**request, "stream": False})[1]


def test_the_first_token_and_each_next_one_take_the_time_that_the_dials_say(served: Served) -> None:
    began = time.monotonic()
    post(served, {"stream": True}, {"ttft_s": 0.1, "itl_s": 0.02, "tokens": 6})
    assert 0.2 <= time.monotonic() - began < 30


def test_a_model_is_listed_as_vllm_lists_it(served: Served) -> None:
    (model,) = json.loads(call(served, "GET", "/v1/models")[1])["data"]
    assert model["max_model_len"] == 131072
    assert model["owned_by"] == "vllm"
    assert model["permission"][0]["object"] == "model_permission"


def test_what_surrounds_generation_answers(served: Served) -> None:
    assert call(served, "GET", "/health") == (200, b"")
    assert json.loads(call(served, "GET", "/version")[1]) == {"version": "0.32.0"}
    assert b'vllm:num_requests_running{engine="0",model_name="kimi-vl"} 0.0' in call(served, "GET", "/metrics")[1]
    assert json.loads(call(served, "GET", "/plugins/kimi_serve/info")[1])["model_class"] == OUR_CLASS
    assert call(served, "GET", "/nowhere")[0] == 404
    assert call(served, "GET", CHAT)[0] == 404


@pytest.mark.parametrize("stream", [True, False])
def test_with_slots_as_many_are_answered_at_once_and_the_others_wait(
    served: Served, engine: FakeEngine, stream: bool
) -> None:
    engine.dials = Dials(slots=2, ttft_s=0.2, tokens=1)
    assert json.loads(call(served, "GET", "/plugins/kimi_serve/info")[1])["max_running_requests"] == 2
    began = time.monotonic()
    with ThreadPoolExecutor(5) as clients:
        answers = [clients.submit(post, served, {"stream": stream}) for _ in range(5)]
        eventually(lambda: engine.record.in_flight == 5)
        told = call(served, "GET", "/metrics")[1]
    assert [answer.result()[0] for answer in answers] == [200] * 5
    assert time.monotonic() - began >= 0.6
    assert b'vllm:num_requests_running{engine="0",model_name="kimi-vl"} 2.0' in told
    assert b'vllm:num_requests_waiting{engine="0",model_name="kimi-vl"} 3.0' in told


def test_one_that_leaves_while_it_waits_takes_no_slot(served: Served, engine: FakeEngine) -> None:
    engine.dials = Dials(slots=1, ttft_s=0.5, tokens=1)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(post, served, {})
        eventually(lambda: engine.record.in_flight == 1)
        with suppress(TimeoutError):
            call(served, "POST", CHAT, {}, timeout=0.1)
        eventually(lambda: len(engine.record.aborts) == 1)
        assert first.result()[0] == 200
    assert post(served, {}, {"slots": 1})[0] == 200


def test_dials_turn_for_all_that_follow(served: Served, engine: FakeEngine) -> None:
    status, body = call(served, "PUT", "/dials", {"tokens": 2, "model": "other"})
    assert (status, json.loads(body)["tokens"]) == (200, 2)
    assert engine.dials == replace(Dials(), tokens=2, model="other")
    assert json.loads(post(served, {})[1])["model"] == "other"


@pytest.mark.parametrize(
    "wrong", [{"speed": 1}, {"tokens": "3"}, {"tokens": True}, {"ttft_s": -1}, {"fail": "no"}, [1]]
)
def test_a_wrong_dial_is_refused_and_turns_nothing(served: Served, engine: FakeEngine, wrong: object) -> None:
    assert call(served, "PUT", "/dials", wrong)[0] == 400
    assert post(served, {}, wrong)[0] == 400
    assert engine.dials == Dials()


@pytest.mark.parametrize("status", [500, 503])
def test_an_error_has_vllms_envelope(served: Served, status: int) -> None:
    answered, body = post(served, {"stream": True}, {"fail": str(status)})
    assert (answered, json.loads(body)["error"]["code"]) == (status, status)


def test_a_refused_request_gets_no_byte(served: Served) -> None:
    with pytest.raises(BROKEN):
        post(served, {}, {"fail": "refuse"})


def test_a_dying_engine_cuts_the_stream_after_its_tokens(served: Served) -> None:
    with pytest.raises(http.client.IncompleteRead) as cut:
        post(served, {"stream": True}, {"fail": "die_mid_stream", "after_tokens": 3, "itl_s": 0.01})
    assert cut.value.partial.count(b"data: ") == 4  # with the role


def test_a_malformed_stream_is_not_http(served: Served) -> None:
    with pytest.raises(http.client.IncompleteRead):
        post(served, {"stream": True}, {"fail": "malformed", "after_tokens": 3})


@pytest.mark.parametrize(("fail", "received"), [("hang_before_headers", 0), ("hang_mid_stream", 1)])
def test_a_hanging_engine_is_silent_and_notes_who_leaves(
    served: Served, engine: FakeEngine, fail: str, received: int
) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=0.7) as client:
        dials = json.dumps({"fail": fail, "after_tokens": 1})
        body = b'{"stream":true}'
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nx-fake-engine: {dials}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        )
        client.sendall(body)
        heard = hear_until_silence(client)
        assert (b"data: " in heard) == (received > 0)
        assert engine.record.in_flight == 1
        left = time.monotonic()
    eventually(lambda: engine.record.aborts)
    (abort,) = engine.record.aborts
    assert (abort.frames, abort.request) == (received, 1)
    assert left <= abort.at < left + 1
    assert engine.record.in_flight == 0


def hear_until_silence(client: socket.socket) -> bytes:
    heard = bytearray()
    with suppress(TimeoutError):
        while data := client.recv(4096):
            heard += data
    return bytes(heard)


def test_who_hears_all_of_an_answer_is_no_abort(served: Served, engine: FakeEngine) -> None:
    post(served, {"stream": True})
    post(served, {})
    time.sleep(0.05)
    assert not engine.record.aborts
    assert engine.record.in_flight == 0


def test_the_record_shows_bodies_and_headers_as_they_came(served: Served, engine: FakeEngine) -> None:
    post(served, {"a": 1}, {"tokens": 1})
    (received,) = engine.record.requests
    assert (received.path, received.body) == (CHAT, b'{"a": 1}')
    assert received.header("x-fake-engine") == '{"tokens": 1}'
    shown = json.loads(call(served, "GET", "/record?bodies")[1])
    assert shown["requests"][0]["body"] == "eyJhIjogMX0="
    assert "body" not in json.loads(call(served, "GET", "/record")[1])["requests"][0]
    assert shown["count"] == 1


def test_the_record_forgets_the_oldest_and_when_told(served: Served, engine: FakeEngine) -> None:
    for number in range(KEPT_REQUESTS + 3):
        post(served, {"n": number}, {"tokens": 1})
    assert engine.record.count == KEPT_REQUESTS + 3
    assert [json.loads(one.body)["n"] for one in engine.record.requests] == list(range(3, KEPT_REQUESTS + 3))
    call(served, "DELETE", "/record")
    assert (engine.record.count, len(engine.record.requests)) == (0, 0)


def test_it_runs_from_a_command_line_with_a_flag_for_every_dial() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "kimi_serve.testing.fake_engine",
        "--port",
        str(port),
        "--tokens",
        "2",
        "--itl-s",
        "0",
    ]
    child = subprocess.Popen(command)
    try:
        eventually(lambda: is_open(port), seconds=20)
        assert json.loads(post(Served(port), {})[1])["usage"]["completion_tokens"] == 2
    finally:
        child.terminate()
        child.wait(10)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
