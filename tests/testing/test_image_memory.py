"""The fake engine forgets pictures as vLLM 0.32 does, in its words: tests/stack/test_elision.py hears the same."""

import http.client
import json
from collections.abc import Iterator

import pytest

from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import Served, in_thread

Json = dict[str, object]
MISS = "Cache miss for image at index {} but data is not provided."


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(Dials(image_memory=2))


@pytest.fixture
def served(engine: FakeEngine) -> Iterator[Served]:
    with in_thread(engine) as running:
        yield running


def post(served: Served, path: str, body: Json) -> tuple[int, Json]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def chat(*pictures: tuple[str, bool]) -> Json:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:"} if full else None, "uuid": name} for name, full in pictures
    ]
    return {"messages": [{"role": "user", "content": parts}]}


def ask(served: Served, *pictures: tuple[str, bool]) -> str | None:
    """What it refuses with."""
    status, body = post(served, "/v1/chat/completions", chat(*pictures))
    if status == 200:
        return None
    error = body["error"]
    assert isinstance(error, dict)
    assert (status, error["type"], error["param"], error["code"]) == (400, "BadRequestError", None, 400)
    return str(error["message"])


def test_a_picture_may_come_by_name_once_its_bytes_came(served: Served) -> None:
    assert ask(served, ("a", False)) == MISS.format(0)
    assert ask(served, ("a", True)) is None
    assert ask(served, ("a", False)) is None
    assert ask(served, ("a", False), ("b", False)) == MISS.format(1)


def test_a_request_that_misses_one_leaves_nothing_behind(served: Served) -> None:
    assert ask(served, ("a", True), ("b", False)) == MISS.format(1)
    assert ask(served, ("a", False)) == MISS.format(0)


def test_what_was_named_longest_ago_is_forgotten_first(served: Served) -> None:
    for picture in (("a", True), ("b", True), ("a", False), ("c", True)):
        assert ask(served, picture) is None
    assert ask(served, ("b", False)) == MISS.format(0)
    assert ask(served, ("a", False), ("c", False)) is None


def test_without_a_memory_every_name_is_taken(engine: FakeEngine, served: Served) -> None:
    engine.dials = engine.dials.turned({"image_memory": 0})
    assert ask(served, ("never", False)) is None


def test_messages_name_theirs_in_the_media_type_and_hear_of_it_in_anthropics_envelope(served: Served) -> None:
    def messages(data: str) -> tuple[int, Json]:
        source = {"type": "base64", "media_type": "image/png;uuid=m", "data": data}
        result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": source}]}
        return post(served, "/v1/messages", {"messages": [{"role": "user", "content": [result]}]})

    told = {"type": "error", "error": {"type": "BadRequestError", "message": MISS.format(0)}}
    assert messages("") == (400, told)
    assert [messages(data)[0] for data in ("AAAA", "")] == [200, 200]


def test_one_that_starts_anew_is_another_instance_and_holds_nothing(engine: FakeEngine, served: Served) -> None:
    def instance() -> object:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        connection.request("GET", "/plugins/kimi_serve/info")
        told: Json = json.loads(connection.getresponse().read())
        connection.close()
        assert told["image_cache_bytes"] == 4 << 30
        return told["instance"]

    assert ask(served, ("a", True)) is None
    before = instance()
    assert instance() == before
    engine.restart()
    assert instance() != before
    assert ask(served, ("a", False)) == MISS.format(0)


def test_a_dial_may_be_turned_for_one_request_to_come(engine: FakeEngine, served: Served) -> None:
    engine.once.append({"fail": "fault"})
    status, body = post(served, "/v1/chat/completions", {"messages": []})
    error = body["error"]
    assert isinstance(error, dict)
    assert (status, error["message"], error["type"]) == (500, "Internal server error", "InternalServerError")
    assert post(served, "/v1/chat/completions", {"messages": []})[0] == 200
