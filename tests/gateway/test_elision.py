"""Pictures that an engine holds, over real sockets: sent by name, sent again where it forgot, never across tenants."""

import base64
import io
import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from kimi_serve.testing.answers import ROUTES, Kind
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.test_gateway import image, png
from tests.gateway.test_tenants import made
from tests.waiting import eventually

REMEMBERS = {"image_memory": 100}
Json = dict[str, object]


def picture(seed: int) -> str:
    """Base64 of a PNG."""
    stored = io.BytesIO()
    Image.frombytes("RGB", (56, 56), random.Random(seed).randbytes(56 * 56 * 3)).save(stored, "PNG")
    return base64.b64encode(stored.getvalue()).decode()


A, B, C = picture(1), picture(2), picture(3)


def chat(pictures: list[str]) -> Json:
    parts = [image(f"data:image/png;base64,{data}") for data in pictures]
    return {"messages": [{"role": "user", "content": parts}]}


def messages(pictures: list[str]) -> Json:
    sources = [{"type": "base64", "media_type": "image/png", "data": data} for data in pictures]
    parts = [{"type": "image", "source": source} for source in sources]
    return {"max_tokens": 8, "messages": [{"role": "user", "content": parts}]}


def responses(pictures: list[str]) -> Json:
    parts = [{"type": "input_image", "image_url": f"data:image/png;base64,{data}"} for data in pictures]
    return {"input": [{"role": "user", "content": parts}]}


BODIES: dict[Kind, Callable[[list[str]], Json]] = {"chat": chat, "messages": messages, "responses": responses}
PATHS = {kind: path for path, kind in ROUTES.items()}


def ask(front: Front, pictures: list[str], kind: Kind = "chat", headers: Json | None = None, **more: object) -> Json:
    """The whole answer, which must be a good one."""
    body = {"model": MODEL, **BODIES[kind](pictures), **more}
    answer = front.http.post(PATHS[kind], json=body, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    front.assert_idle()
    found: Json = {"text": answer.text} if more.get("stream") else answer.json()
    return found


def other(front: Front) -> httpx.Client:
    return httpx.Client(base_url=front.url, timeout=60, trust_env=False)


@dataclass
class Sent:
    name: str
    has_bytes: bool


def sent(front: Front, index: int = -1, engine: int = 0) -> list[Sent]:
    """The pictures of a request as the engine got them."""
    body = json.loads(front.engines[engine].record.requests[index].body)
    return [_sent(part) for item in body.get("messages", body.get("input")) for part in item["content"]]


def _sent(part: Json) -> Sent:
    source = part.get("source")
    if isinstance(source, dict):
        return Sent(source["media_type"].partition(";uuid=")[2], bool(source["data"]))
    return Sent(str(part["uuid"]), part["image_url"] is not None)


def metric(front: Front, name: str) -> float:
    lines = front.http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"kimi_serve_{name}"))


@pytest.mark.parametrize("kind", BODIES)
def test_the_second_turn_names_what_the_first_one_brought(start: Start, kind: Kind) -> None:
    front = start(dials=REMEMBERS)
    ask(front, [A], kind)
    ask(front, [A, B], kind)
    ask(front, [B, A, B], kind)
    assert [one.has_bytes for one in sent(front, 0)] == [True]
    assert [one.has_bytes for one in sent(front, 1)] == [False, True]
    assert [one.has_bytes for one in sent(front, 2)] == [False, False, False]
    first, second = sent(front, 1)
    assert [one.name for one in sent(front, 2)] == [second.name, first.name, second.name]
    assert metric(front, "elided_images_total") == 4
    assert metric(front, "elided_bytes_total") >= 2 * (len(A) + len(B))
    assert metric(front, "elision_misses_total") == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", BODIES)
def test_an_engine_that_forgot_gets_them_again_and_the_client_sees_one_clean_answer(
    start: Start, kind: Kind, stream: bool
) -> None:
    front = start(dials={**REMEMBERS, "tokens": 3, "text": " ha"})
    ask(front, [A, B], kind)
    front.engines[0].images.forget()
    answer = json.dumps(ask(front, [A, B, C], kind, stream=stream))
    assert "miss" not in answer
    assert "error" not in answer.replace('"error": null', "")
    assert [[one.has_bytes for one in sent(front, index)] for index in (1, 2)] == [[False, False, True], [True] * 3]
    assert metric(front, "elision_misses_total") == 1
    ask(front, [A, B, C], kind)
    assert [one.has_bytes for one in sent(front)] == [False] * 3
    assert metric(front, "elision_misses_total") == 1
    assert [replica.ejections for replica in front.gateway.fleet.snapshot()] == [0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", BODIES)
def test_an_engine_whose_two_caches_disagree_is_asked_again_before_the_client_hears_of_it(
    start: Start, kind: Kind, stream: bool
) -> None:
    front = start(dials={**REMEMBERS, "tokens": 3, "text": " ha"})
    for turn in range(2):  # with the bytes and without
        front.engines[0].once.append({"fail": "fault"})
        answer = json.dumps(ask(front, [A], kind, stream=stream))
        assert answer.count(" ha") >= 1
        assert "error" not in answer.replace('"error": null', "")
        assert metric(front, "elision_misses_total") == turn + 1
    assert [sent(front, index)[0].has_bytes for index in range(4)] == [True, True, False, True]


def test_an_engine_that_fails_twice_has_failed(start: Start) -> None:
    front = start()
    front.engines[0].once.extend([{"fail": "fault"}] * 2)
    answer = front.http.post(PATHS["chat"], json={"model": MODEL, **chat([A])})
    assert answer.status_code == 500
    front.engines[0].once.extend([{"fail": "fault"}] * 2)
    text = front.http.post(PATHS["chat"], json={"model": MODEL, "stream": True, **chat([A])}).text
    assert "Internal server error" in text
    assert front.engines[0].record.count == 4
    front.assert_idle()


def test_a_text_that_fails_is_not_asked_again(start: Start) -> None:
    front = start()
    front.engines[0].once.append({"fail": "fault"})
    assert front.chat("hello").status_code == 500
    assert front.engines[0].record.count == 1


def test_a_fault_is_no_reason_to_ask_again_where_the_retries_are_used_up(start: Start) -> None:
    front = start(replicas={"retry_percent": 0})
    while front.gateway.retries.try_spend():
        pass
    front.engines[0].once.append({"fail": "fault"})
    assert front.http.post(PATHS["chat"], json={"model": MODEL, **chat([A])}).status_code == 500
    assert front.engines[0].record.count == 1


def test_a_clients_own_name_never_reaches_an_engine(start: Start) -> None:
    front = start()
    ours = {**image(f"data:image/png;base64,{A}"), "uuid": "evil"}
    in_url = image(f"data:image/png;uuid=evil;base64,{A}")
    disguised = {"type": "text", "text": "hi", "image_url": {"url": f"data:image/png;base64,{A}"}, "uuid": "evil"}
    assert front.chat([ours, in_url, disguised]).status_code == 200
    item = {"role": "user", "content": [{"type": "input_image", "image_url": f"data:;base64,{A}", "uuid": "evil"}]}
    assert front.http.post("/v1/responses", json={"model": MODEL, "input": [item]}).status_code == 200
    source = {"type": "base64", "media_type": "image/png", "data": A}
    asked = messages([A]) | {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]}
    assert front.http.post("/v1/messages", json={"model": MODEL, **asked}).status_code == 200
    evil = {**source, "media_type": "image/png;uuid=evil"}
    asked["messages"] = [{"role": "user", "content": [{"type": "image", "source": evil}]}]
    assert front.http.post("/v1/messages", json={"model": MODEL, **asked}).status_code == 400
    assert [b"evil" in received.body for received in front.engines[0].record.requests] == [False] * 3


def test_a_picture_that_never_came_cannot_be_named_by_a_client(start: Start) -> None:
    front = start(dials=REMEMBERS)
    ask(front, [A])
    name = sent(front)[0].name
    for url in (None, f"data:image/png;uuid={name};base64,"):
        part = {"type": "image_url", "image_url": url and {"url": url}, "uuid": name}
        assert front.chat([part]).status_code == 400
    assert front.engines[0].record.count == 1


def test_two_tenants_with_the_same_picture_share_no_name(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    acme, other = made(file, "acme"), made(file, "other")
    front = start(dials=REMEMBERS, keys={"file": str(file)})
    for header in (acme, other, acme, other):
        ask(front, [A], headers=header)  # type: ignore[arg-type]
    first, second, third, fourth = (sent(front, index)[0] for index in range(4))
    assert [one.has_bytes for one in (first, second, third, fourth)] == [True, True, False, False]
    assert (first.name, second.name) == (third.name, fourth.name)
    assert first.name != second.name


def test_a_name_says_nothing_of_the_picture_to_who_lacks_the_salt(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    header = made(file, "acme")
    names = []
    for secret in ("a secret of sixteen bytes", "another of sixteen bytes"):
        front = start(keys={"file": str(file), "salt_secret": secret})
        ask(front, [A], headers=header)  # type: ignore[arg-type]
        names.append(sent(front)[0].name)
    assert len(set(names)) == 2


def test_nothing_is_left_out_before_a_request_with_the_bytes_was_read(start: Start) -> None:
    front = start(dials={**REMEMBERS, "ttft_s": 600.0}, stream={"keep_alive_s": 0.05})
    body = {"model": MODEL, **chat([A])}
    with other(front) as slow, slow.stream("POST", PATHS["chat"], json={**body, "stream": True}):
        eventually(lambda: front.engines[0].record.count == 1, 10.0)
        front.engines[0].dials = front.engines[0].dials.turned({"ttft_s": 0.0})
        assert front.http.post(PATHS["chat"], json=body).status_code == 200
        assert front.http.post(PATHS["chat"], json=body).status_code == 200
    assert [sent(front, index)[0].has_bytes for index in range(3)] == [True, True, False]


def test_a_client_that_left_before_the_first_token_has_taught_the_engine_nothing(start: Start) -> None:
    front = start(dials={"ttft_s": 600.0}, stream={"keep_alive_s": 0.05})
    body = {"model": MODEL, **chat([A])}
    with other(front) as leaving, leaving.stream("POST", PATHS["chat"], json={**body, "stream": True}):
        eventually(lambda: front.engines[0].record.count == 1, 10.0)
    eventually(lambda: len(front.engines[0].record.aborts) == 1, 10.0)
    front.engines[0].dials = front.engines[0].dials.turned({"ttft_s": 0.0})
    ask(front, [A])
    assert sent(front)[0].has_bytes


def test_many_at_once_with_the_same_new_picture_are_all_answered(start: Start) -> None:
    front = start(dials=REMEMBERS)
    gate = threading.Barrier(8)

    def one(_: int) -> int:
        gate.wait()
        with other(front) as http:
            return http.post(PATHS["chat"], json={"model": MODEL, **chat([A])}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [200] * 8
    assert metric(front, "elision_misses_total") == 0
    front.assert_idle()


@pytest.mark.parametrize("fail", ["500", "refuse", "die_mid_stream"])
def test_a_request_that_failed_has_taught_the_engine_nothing(start: Start, fail: str) -> None:
    front = start()
    dials = front.engines[0].dials
    front.engines[0].dials = dials.turned({"fail": fail})
    front.http.post(PATHS["chat"], json={"model": MODEL, "stream": True, **chat([A])})
    front.engines[0].dials = dials
    ask(front, [A])
    assert sent(front)[0].has_bytes


def test_a_refusal_of_another_kind_is_the_clients_to_read(start: Start) -> None:
    front = start(dials=REMEMBERS)
    ask(front, [A])
    answer = front.http.post(
        PATHS["chat"], json={"model": MODEL, **chat([A])}, headers={"x-fake-engine": json.dumps({"fail": "500"})}
    )
    assert answer.status_code == 200  # a client's header is not passed on
    front.engines[0].dials = front.engines[0].dials.turned({"fail": "500"})
    answer = front.http.post(PATHS["chat"], json={"model": MODEL, **chat([A])})
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "the dial says so")
    assert metric(front, "elision_misses_total") == 0


def test_an_engine_that_was_started_anew_gets_everything_again(start: Start) -> None:
    front = start(dials=REMEMBERS)
    ask(front, [A])
    replica = next(iter(front.gateway.fleet._replicas.values()))
    name = bytes.fromhex(sent(front)[0].name)
    assert replica.holdings.holds_image(name)
    front.engines[0].restart()
    eventually(lambda: not replica.holdings.holds_image(name), 10.0)
    ask(front, [A])
    assert sent(front)[0].has_bytes
    assert metric(front, "elision_misses_total") == 0


def test_another_engine_holds_what_it_was_sent_itself(start: Start) -> None:
    front = start(engines=2, dials=REMEMBERS)
    ask(front, [A])
    used = next(number for number, engine in enumerate(front.engines) if engine.record.count)
    front.engines[used].dials = front.engines[used].dials.turned({"fail": "refuse"})
    ask(front, [A])
    assert sent(front, engine=1 - used)[0].has_bytes


@pytest.mark.parametrize("told", [True, False])
def test_an_engine_with_a_small_cache_is_counted_on_for_as_little(start: Start, told: bool) -> None:
    """Half of a cache of three such pictures, each of four tokens of 2,352 bytes, is one."""
    small = 3 * 4 * 2352
    front = start(dials={"image_cache_bytes": small}) if told else start(elision={"cache_share": small / 2 / 2**32})
    for one in (A, B, A):
        ask(front, [one])
    assert [sent(front, index)[0].has_bytes for index in range(3)] == [True, True, True]
    ask(front, [A])
    assert not sent(front)[0].has_bytes


def test_a_setting_turns_it_off_and_names_stay(start: Start) -> None:
    front = start(dials=REMEMBERS, elision={"enabled": False})
    for _ in range(2):
        ask(front, [A])
    first, second = sent(front, 0)[0], sent(front, 1)[0]
    assert first == second == Sent(first.name, True)
    assert metric(front, "elided_images_total") == 0


def test_the_count_of_the_prompt_is_the_same_without_the_bytes(start: Start) -> None:
    front = start(dials=REMEMBERS)
    counts = []
    for _ in range(2):
        body = {"model": MODEL, **chat([png(280, 140).partition(",")[2]])}
        answer = front.http.post(PATHS["chat"], json=body)
        counts.append(answer.headers["x-kimi-serve-prompt-tokens"])
    assert counts[0] == counts[1]
    assert not sent(front)[0].has_bytes
