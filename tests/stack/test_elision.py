"""Pictures that the engine holds, sent to it by name: the real engine's answers and counts are those with the bytes."""

import base64
import io
import random
from collections.abc import Callable, Iterator

import httpx
import pytest
from blake3 import blake3
from PIL import Image

from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.pictures import Seen
from tests.stack.served import NAME, Reply, Server, fresh_http

Json = dict[str, object]
GREEDY: Json = {"model": NAME, "temperature": 0, "seed": 0}


def png(seed: int, width: int = 140, height: int = 84) -> bytes:
    stored = io.BytesIO()
    Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3)).save(stored, "PNG")
    return stored.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def chat(pictures: list[bytes]) -> Json:
    parts: list[Json] = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_of(data)}"}} for data in pictures
    ]
    parts.append({"type": "text", "text": "What?"})
    return {**GREEDY, "max_tokens": 8, "messages": [{"role": "user", "content": parts}]}


def messages(pictures: list[bytes]) -> Json:
    sources = [{"type": "base64", "media_type": "image/png", "data": base64_of(data)} for data in pictures]
    seen = [{"type": "image", "source": source} for source in sources]
    result = {"type": "tool_result", "tool_use_id": "t", "content": seen[:1]}
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [*seen[1:], result, {"type": "text", "text": "What?"}]},
    ]
    return {**GREEDY, "max_tokens": 8, "messages": turns}


def responses(pictures: list[bytes]) -> Json:
    parts: list[Json] = [
        {"type": "input_image", "image_url": f"data:image/png;base64,{base64_of(data)}"} for data in pictures
    ]
    parts.append({"type": "input_text", "text": "What?"})
    return {**GREEDY, "max_output_tokens": 8, "store": False, "input": [{"role": "user", "content": parts}]}


DIALECTS: dict[str, tuple[str, Callable[[list[bytes]], Json]]] = {
    "chat": ("/v1/chat/completions", chat),
    "messages": ("/v1/messages", messages),
    "responses": ("/v1/responses", responses),
}


@pytest.fixture
def http(front: tuple[str, Gateway]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=front[0], timeout=120, trust_env=False) as client:
        yield client


def said(body: Json) -> object:
    """What an answer says, without its ids and times."""
    if "choices" in body:
        return body["choices"][0]["message"]["content"]  # type: ignore[index]
    if "output" in body:
        return [part["text"] for item in body["output"] for part in item.get("content") or []]  # type: ignore[attr-defined]
    return [(block.get("text"), block.get("thinking")) for block in body["content"]]  # type: ignore[attr-defined]


def counted(body: Json) -> int:
    usage = body["usage"]
    assert isinstance(usage, dict)
    tokens = usage.get("prompt_tokens") or usage["input_tokens"]
    assert isinstance(tokens, int)
    return tokens


def metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"kimi_serve_{name} "))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_answer_without_the_bytes_is_the_answer_with_them(server: Server, http: httpx.Client, dialect: str) -> None:
    path, body_of = DIALECTS[dialect]
    seed = 10 * list(DIALECTS).index(dialect)
    pictures = [png(seed), png(seed + 1, 84, 196), png(seed)]
    direct = server.post(path, body_of(pictures))
    assert direct.status == 200, direct.body
    before = metric(http, "elided_images_total")
    answers = []
    for _ in range(3):
        answer = http.post(path, json=body_of(pictures))
        assert answer.status_code == 200, answer.text
        answers.append(answer)
    assert metric(http, "elided_images_total") - before == 2 * len(pictures)
    for answer in answers:
        assert said(answer.json()) == said(direct.body)
        assert counted(answer.json()) == counted(direct.body) == int(answer.headers["x-kimi-serve-prompt-tokens"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_the_engine_does_not_hold_it_gets_again(
    front: tuple[str, Gateway], http: httpx.Client, dialect: str, stream: bool
) -> None:
    """The gateway is made to believe that the engine holds a picture that never came."""
    path, body_of = DIALECTS[dialect]
    data = png(100 + 2 * list(DIALECTS).index(dialect) + stream)
    held = next(iter(front[1].fleet._replicas.values())).holdings
    name = Seen((140, 84), blake3(data).digest(32), "PNG").name(None)
    held._images.remember([(name, 15)])
    misses = metric(http, "elision_misses_total")
    answer = http.post(path, json={**body_of([data]), "stream": stream})
    assert answer.status_code == 200, answer.text
    assert "miss" not in answer.text
    assert "rror" not in answer.text.replace('"error":null', "")
    assert metric(http, "elision_misses_total") == misses + 1
    assert held.holds_image(name)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_picture_of_a_refused_request_works_in_the_next_one(http: httpx.Client, dialect: str, stream: bool) -> None:
    """By then the engine's front end has processed it and its core never got it: vLLM answers the next one with 500."""
    path, body_of = DIALECTS[dialect]
    data = png(200 + 2 * list(DIALECTS).index(dialect) + stream)
    refused = http.post("/v1/chat/completions", json={**chat([data]), "temperature": -3})
    assert refused.status_code == 400, refused.text
    answer = http.post(path, json={**body_of([data]), "stream": stream})
    assert answer.status_code == 200, answer.text
    assert "rror" not in answer.text.replace('"error":null', "")


def test_a_name_in_a_data_url_is_read_where_a_route_has_no_field_for_it(server: Server) -> None:
    data = png(300)

    def ask(sent: str, name: str) -> Reply:
        source = {"type": "base64", "media_type": f"image/png;uuid={name}", "data": sent}
        parts = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
        turns = [{"role": "user", "content": parts}]
        return server.post("/v1/messages", {**GREEDY, "max_tokens": 8, "messages": turns})

    first = ask(base64_of(data), "one")
    again = ask("", "one")
    assert said(again.body) == said(first.body)
    assert counted(again.body) == counted(first.body)
    never = ask("", "two")
    assert (never.status, never.error) == (400, "Cache miss for image at index 0 but data is not provided.")


def test_a_name_beside_a_text_makes_no_picture_of_it(server: Server) -> None:
    url = f"data:image/png;uuid=three;base64,{base64_of(png(301))}"
    plain = server.chat([{"type": "text", "text": "What?"}])
    disguised = server.chat([{"type": "text", "text": "What?", "image_url": {"url": url}}])
    assert disguised.prompt_tokens == plain.prompt_tokens


def test_the_engine_says_which_start_it_is_and_what_it_caches(server: Server) -> None:
    with fresh_http(server.url) as http:
        told = [http.get("/plugins/kimi_serve/info").json() for _ in range(2)]
    assert told[0] == told[1]
    assert len(told[0]["instance"]) == 32
    assert told[0]["image_cache_bytes"] > 2**28
