"""What is asked: the gateway takes it, and it is the same work every time."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from benchmarks.load import material, scenarios
from benchmarks.load.conversations import ask, converse, leaves_after
from benchmarks.load.scenarios import HistoryPart
from tests.benchmarks.load.conftest import Stage

PICTURES = {"chat": [0], "image": [1], "images": [4], "document": [3], "video": [8], "agents": [5], "mixed": [0, 1, 4]}


def pictures(body: bytes) -> list[str]:
    found = []
    for message in json.loads(body)["messages"]:
        parts = message["content"] if isinstance(message["content"], list) else []
        found += [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return found


def test_a_gateway_shows_an_engine_all_that_the_scenarios_send(stage: Callable[..., Stage]) -> None:
    """Documents and videos too: it reads these itself, and counts what it made of them."""
    opened = stage({"max_model_len": 32768, "tokens": 2})
    for name, counts in PICTURES.items():
        before = images(opened)
        made = ask(scenarios.read(name), "kimi-vl", 0, "123456")
        answer = opened.front.http.post("/v1/chat/completions", content=made.body)
        assert answer.status_code == 200, (name, answer.text)
        assert images(opened) - before in counts, name


def images(opened: Stage) -> int:
    lines = opened.front.http.get("/metrics").text.splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith("kimi_serve_images_total{"))


@pytest.mark.parametrize("name", scenarios.names())
def test_another_salt_asks_for_the_same_work_in_other_words(name: str) -> None:
    scenario = scenarios.read(name)
    once, again, other = (converse(scenario, 5, salt) for salt in ("000001", "000001", "000002"))
    assert once == again
    assert once.messages != other.messages
    assert (once.part, once.cancel_after_s) == (other.part, other.cancel_after_s)
    assert shape(once.messages) == shape(other.messages)


def shape(value: Any) -> Any:
    """Without texts and bytes: how many words, and of what kind each data URL is."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value]
    if not isinstance(value, str):
        return value
    return value.partition(",")[0] if value.startswith("data:") else len(value.split())


def test_no_prompt_begins_as_another_does() -> None:
    scenario = scenarios.read("chat")
    starts = {json.dumps(converse(scenario, number, "000001").messages)[:80] for number in range(200)}
    assert len(starts) == 200


def test_agents_send_four_of_five_screenshots_again() -> None:
    scenario = scenarios.read("agents")
    part = scenario.parts[0]
    assert isinstance(part, HistoryPart)
    seen: dict[int, set[str]] = {}
    for number in range(5 * part.sessions):
        sent = pictures(ask(scenario, "m", number, "000001").body)
        assert len(sent) == len(set(sent)) == 5
        session = number % part.sessions
        if session in seen:
            assert len(seen[session] & set(sent)) == 4
        seen[session] = set(sent)
    assert not seen[0] & seen[1], "sessions share no screenshot"


def test_three_clients_of_ten_leave() -> None:
    scenario = scenarios.read("cancellations")
    moments = [leaves_after(scenario, number) for number in range(2000)]
    leaving = [at for at in moments if at is not None]
    assert len(leaving) / len(moments) == pytest.approx(0.3, abs=0.03)
    assert 0 <= min(leaving) < 0.1 < 1.9 < max(leaving) <= 2.0
    assert converse(scenario, 7, "1").cancel_after_s == moments[7]


def test_pictures_are_what_they_say() -> None:
    assert Image.open(io.BytesIO(material.photograph("a", (120, 80)))).size == (120, 80)
    assert Image.open(io.BytesIO(material.screenshot("a", (120, 80)))).size == (120, 80)
    assert material.photograph("a", (120, 80)) != material.photograph("b", (120, 80))
