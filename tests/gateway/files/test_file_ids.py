"""A file's id stands wherever its bytes can: the engine gets the same, and so does the count."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kimi_serve.gateway.media import data_urls
from kimi_serve.testing.answers import ROUTES, Kind
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.expansion.films import film
from tests.gateway.test_gateway import png
from tests.gateway.test_tenants import made

URL = png(280, 140)
PATHS = {kind: path for path, kind in ROUTES.items()}
Json = dict[str, object]


@pytest.fixture
def front(start: Start, tmp_path: Path) -> Iterator[Front]:
    opened = start(files={"folder": tmp_path / "files"})
    yield opened
    opened.assert_idle()


def keep(front: Front, data: bytes, headers: dict[str, str] | None = None) -> str:
    form = {"data": {"purpose": "vision"}, "files": {"file": ("x.png", data)}}
    return str(front.http.post("/v1/files", headers=headers, **form).json()["id"])  # type: ignore[arg-type]


def picture() -> bytes:
    return data_urls.decode(URL, max_bytes=10**7)


def body(kind: Kind, part: Json) -> Json:
    turns = [{"role": "user", "content": [part]}]
    return {"model": MODEL, "input": turns} if kind == "responses" else {"model": MODEL, "messages": turns}


def parts(file_id: str) -> dict[str, tuple[Kind, Json]]:
    return {
        "chat": ("chat", {"type": "file", "file": {"file_id": file_id}}),
        "chat, image": ("chat", {"type": "image_url", "image_url": {"file_id": file_id, "detail": "high"}}),
        "responses, image": ("responses", {"type": "input_image", "detail": "auto", "file_id": file_id}),
        "responses, file": ("responses", {"type": "input_file", "file_id": file_id}),
        "messages": ("messages", {"type": "image", "source": {"type": "file", "file_id": file_id}}),
        "messages, document": ("messages", {"type": "document", "source": {"type": "file", "file_id": file_id}}),
    }


@pytest.mark.parametrize("name", parts(""))
def test_a_file_by_its_id_is_the_picture_that_it_holds(front: Front, name: str) -> None:
    kind, part = parts(keep(front, picture()))[name]
    answer = front.http.post(
        PATHS[kind], json={**body(kind, part), **({"max_tokens": 8} if kind != "responses" else {})}
    )
    assert answer.status_code == 200, answer.text
    sent = json.loads(front.engines[0].record.requests[-1].body)
    (got,) = sent.get("messages", sent.get("input"))[0]["content"]
    if kind == "messages":
        assert got["source"]["media_type"].startswith("image/png;uuid=")
        assert got["source"]["data"] == URL.partition(",")[2]
    else:
        url = got["image_url"]["url"] if kind == "chat" else got["image_url"]
        assert (url, len(got["uuid"])) == (URL, 64)
    assert "file_id" not in json.dumps(got)
    counts = {"chat": "/tokenize", "responses": "/v1/responses/input_tokens", "messages": "/v1/messages/count_tokens"}
    told = front.http.post(counts[kind], json=body(kind, part)).json()
    assert told["count" if kind == "chat" else "input_tokens"] > 50


def test_a_video_by_its_id_is_the_frames_that_it_holds(front: Front) -> None:
    part = {"type": "video_url", "video_url": {"file_id": keep(front, film("mp4"))}, "frames": 2}
    assert front.http.post(PATHS["chat"], json={**body("chat", part), "max_tokens": 8}).status_code == 200
    (turn,) = json.loads(front.engines[0].record.requests[-1].body)["messages"]
    assert [got["type"] for got in turn["content"]] == ["text", "image_url"] * 2


def test_it_is_looked_for_in_every_place_of_a_conversation(front: Front) -> None:
    file_id = keep(front, picture())
    shown = {"type": "document", "source": {"type": "file", "file_id": file_id}}
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [shown]}]},
    ]
    asked = {"model": MODEL, "max_tokens": 8, "messages": turns}
    assert front.http.post("/v1/messages", json=asked).status_code == 200
    items = [
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "file_id": file_id}]},
    ]
    assert front.http.post("/v1/responses", json={"model": MODEL, "input": items}).status_code == 200
    sent = [json.loads(request.body) for request in front.engines[0].record.requests]
    assert sent[0]["messages"][2]["content"][0]["content"][0]["source"]["data"] == URL.partition(",")[2]
    named = sent[0]["messages"][2]["content"][0]["content"][0]["source"]["media_type"].partition("uuid=")[2]
    assert sent[1]["input"][1]["output"][0]["uuid"] == named  # the engine holds it by now


@pytest.mark.parametrize("name", parts(""))
def test_a_file_that_is_not_there_is_refused_by_its_place(front: Front, name: str) -> None:
    kind, part = parts("file-0")[name]
    answer = front.http.post(PATHS[kind], json={**body(kind, part), "max_tokens": 8})
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (404, "file_not_found")
    assert "[0].content[0]" in answer.json()["error"]["message"]
    assert front.engines[0].record.count == 0


def test_another_tenants_file_cannot_be_named(start: Start, tmp_path: Path) -> None:
    mine, others = (made(tmp_path / "keys.json", tenant) for tenant in ("mine", "others"))
    front = start(files={"folder": tmp_path / "files"}, keys={"file": tmp_path / "keys.json"})
    _, part = parts(keep(front, picture(), mine))["chat"]
    answers = [front.http.post(PATHS["chat"], json=body("chat", part), headers=key) for key in (mine, others)]
    assert [answer.status_code for answer in answers] == [200, 404]


def test_its_bytes_count_as_if_the_client_had_sent_them(start: Start, tmp_path: Path) -> None:
    front = start(files={"folder": tmp_path / "files"}, body={"max_bytes": 4000})
    _, part = parts(keep(front, b"x" * 4000))["chat"]
    answer = front.http.post(PATHS["chat"], json=body("chat", part))
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (413, "body_too_large")
    front.assert_idle()


def test_an_id_that_is_no_text_is_refused(front: Front) -> None:
    answer = front.http.post(PATHS["chat"], json=body("chat", {"type": "file", "file": {"file_id": 5}}))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].content[0].file.file_id")
