"""File parts that hold a picture are pictures; everything else is refused with what to do instead."""

import base64
import json

import httpx
import pytest

from kimi_serve.testing.answers import ROUTES, Kind
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.test_gateway import png

URL = png(280, 140)
DATA = URL.partition(",")[2]
PDF = base64.b64encode(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n").decode()
PATHS = {kind: path for path, kind in ROUTES.items()}
Json = dict[str, object]


def chat_file(**fields: object) -> Json:
    return {"type": "file", "file": {"filename": "x.png", **fields}}


def input_file(**fields: object) -> Json:
    return {"type": "input_file", "filename": "x.png", **fields}


def document(**source: object) -> Json:
    return {"type": "document", "title": "x", "source": source}


def post(front: Front, kind: Kind, part: Json) -> httpx.Response:
    body: Json = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": [part]}]}
    if kind == "responses":
        body = {"model": MODEL, "input": [{"role": "user", "content": [part]}]}
    return front.http.post(PATHS[kind], json=body)


PICTURES: dict[str, tuple[Kind, Json]] = {
    "chat": ("chat", chat_file(file_data=URL)),
    "chat, called a PDF": ("chat", chat_file(file_data=f"data:application/pdf;base64,{DATA}", filename="x.pdf")),
    "chat, no data URL": ("chat", chat_file(file_data=DATA)),
    "responses": ("responses", input_file(file_data=URL)),
    "responses, no data URL": ("responses", input_file(file_data=DATA)),
    "messages": ("messages", document(type="base64", media_type="image/png", data=DATA)),
    "messages, called a PDF": ("messages", document(type="base64", media_type="application/pdf", data=DATA)),
}
PARTS: dict[Kind, Json] = {
    "chat": {"type": "image_url", "image_url": {"url": URL}},
    "responses": {"type": "input_image", "detail": "auto", "image_url": URL},
    "messages": {"type": "image", "source": {"type": "base64", "data": DATA}},
}


@pytest.mark.parametrize(("kind", "part"), PICTURES.values(), ids=PICTURES)
def test_a_file_that_is_a_picture_reaches_the_engine_as_one(start: Start, kind: Kind, part: Json) -> None:
    front = start()
    answer = post(front, kind, part)
    assert answer.status_code == 200, answer.text
    body = json.loads(front.engines[0].record.requests[-1].body)
    (got,) = body.get("messages", body.get("input"))[0]["content"]
    if kind == "messages":
        assert got["source"].pop("media_type").startswith("image/png;uuid=")
    else:
        assert len(got.pop("uuid")) == 64
    assert got == PARTS[kind]
    front.assert_idle()


@pytest.mark.parametrize(("kind", "part"), PICTURES.values(), ids=PICTURES)
def test_its_tokens_are_a_pictures(idle: Front, kind: Kind, part: Json) -> None:
    def tokens(one: Json) -> int:
        body: Json = {"model": MODEL, "messages": [{"role": "user", "content": [one]}]}
        if kind == "chat":
            return int(idle.http.post("/tokenize", json=body).json()["count"])
        if kind == "responses":
            body = {"model": MODEL, "input": [{"role": "user", "content": [one]}]}
        path = {"messages": "/v1/messages/count_tokens", "responses": "/v1/responses/input_tokens"}[kind]
        return int(idle.http.post(path, json=body).json()["input_tokens"])

    plain = PARTS[kind]
    if kind == "messages":
        plain = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
    assert tokens(part) == tokens(plain) > 50


def test_a_documents_tool_result_is_a_picture_too(start: Start) -> None:
    front = start()
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    shown = document(type="base64", media_type="image/png", data=DATA)
    result = {"type": "tool_result", "tool_use_id": "t", "content": [shown]}
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    answer = front.http.post("/v1/messages", json={"model": MODEL, "max_tokens": 8, "messages": turns})
    assert answer.status_code == 200, answer.text
    sent = json.loads(front.engines[0].record.requests[-1].body)["messages"][2]["content"][0]["content"][0]
    assert (sent["type"], sent["source"]["data"]) == ("image", DATA)


REFUSED: dict[str, tuple[Kind, Json, str, str]] = {
    "chat, PDF": (
        "chat",
        chat_file(file_data=f"data:application/pdf;base64,{PDF}"),
        "invalid_document",
        "is damaged",
    ),
    "chat, text": ("chat", chat_file(file_data="data:text/plain;base64,aGVsbG8="), "unsupported_media_type", "JPEG"),
    "chat, id": ("chat", chat_file(file_id="f-1"), "invalid_value", "messages[0].content[0].file.file_id: "),
    "chat, nothing": ("chat", chat_file(), "invalid_value", "messages[0].content[0].file.file_data: "),
    "chat, no object": ("chat", {"type": "file", "file": "x"}, "invalid_value", "messages[0].content[0].file: "),
    "chat, no base64": ("chat", chat_file(file_data="§"), "invalid_media_url", "ASCII"),
    "chat, private": (
        "chat",
        chat_file(file_url="http://127.0.0.1/x.pdf"),
        "media_url_forbidden",
        "messages[0].content[0]",
    ),
    "responses, PDF": ("responses", input_file(file_data=PDF), "invalid_document", "is damaged"),
    "responses, id": ("responses", input_file(file_id="f-1"), "invalid_value", "input[0].content[0].file_id: "),
    "responses, private": (
        "responses",
        input_file(file_url="http://127.0.0.1/x"),
        "media_url_forbidden",
        "input[0].content[0]",
    ),
    "messages, PDF": (
        "messages",
        document(type="base64", media_type="application/pdf", data=PDF),
        "invalid_document",
        "is damaged",
    ),
    "messages, id": ("messages", document(type="file", file_id="f-1"), "invalid_value", "keeps no files"),
    "messages, text": (
        "messages",
        document(type="text", media_type="text/plain", data="x"),
        "invalid_value",
        "text block",
    ),
    "messages, nothing": (
        "messages",
        {"type": "document"},
        "invalid_value",
        "messages[0].content[0].source.type: ",
    ),
}


@pytest.mark.parametrize(("kind", "part", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_any_other_file_is_refused_with_what_to_do(idle: Front, kind: Kind, part: Json, code: str, said: str) -> None:
    answer = post(idle, kind, part)
    assert answer.status_code == 400, answer.text
    assert answer.headers["x-kimi-serve-reason"] == code
    assert said in answer.json()["error"]["message"]
