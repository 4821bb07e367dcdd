"""Anthropic's routes over real sockets: what goes on, what is counted, what is refused and how that looks."""

import base64
import io
import json
from contextlib import closing, suppress

import httpx
import pytest
from PIL import Image
from starlette.responses import Response

from kimi_serve.testing.serving import in_thread
from tests.gateway.conftest import MODEL, Front, Start
from tests.waiting import eventually

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "Says how it is.", "input_schema": SCHEMA}
CHAT_TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Says how it is.", "parameters": SCHEMA},
}


def png(width: int = 280, height: int = 140) -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (width, height), (30, 200, 30)).save(stored, "PNG")
    return stored.getvalue()


DATA = base64.b64encode(png()).decode()
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
CHAT_PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}


def text(said: str) -> dict[str, object]:
    return {"type": "text", "text": said}


def send(front: Front, messages: object = HELLO, **options: object) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 8, "messages": messages, **options}
    return front.http.post("/v1/messages", json={name: value for name, value in body.items() if value is not None})


def count(front: Front, **body: object) -> int:
    answered = front.http.post("/v1/messages/count_tokens", json={"model": MODEL, **body})
    assert answered.status_code == 200, answered.text
    assert list(answered.json()) == ["input_tokens"]
    return int(answered.json()["input_tokens"])


def chat_count(front: Front, **body: object) -> int:
    answered = front.http.post("/tokenize", json={"model": MODEL, **body})
    assert answered.status_code == 200, answered.text
    return int(answered.json()["count"])


def refused(response: httpx.Response, status: int, kind: str, reason: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["x-kimi-serve-reason"] == reason
    said = response.json()
    assert set(said) == {"type", "error"}
    assert (said["type"], said["error"]["type"]) == ("error", kind)
    return str(said["error"]["message"])


def events(response: httpx.Response) -> list[tuple[str, dict[str, object]]]:
    frames = [frame for frame in response.text.split("\n\n") if frame.startswith("event: ")]
    pairs = [frame.split("\n", 1) for frame in frames]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


def test_a_body_goes_on_byte_for_byte_to_the_engines_own_route(start: Start) -> None:
    front = start()
    raw = b'{ "model":"kimi-vl",\n "max_tokens": 5, "messages":[{"role":"user","content":"\\u0048i"}], "top_k": 3 }'
    assert front.http.post("/v1/messages", content=raw).status_code == 200
    received = front.engines[0].record.requests[-1]
    assert (received.path, received.body) == ("/v1/messages", raw)
    front.assert_idle()


def test_an_answer_is_settled_by_its_usage(start: Start) -> None:
    front = start(dials={"tokens": 3, "text": " ha", "prompt_tokens": 21})
    answered = send(front)
    assert answered.json()["content"] == [{"type": "text", "text": " ha ha ha"}]
    assert answered.headers["x-kimi-serve-prompt-tokens"] == str(count(front, messages=HELLO))
    assert 'kimi_serve_completion_tokens_total{tenant="anonymous"} 3.0' in front.http.get("/metrics").text


def test_a_stream_ends_with_message_stop_and_is_settled_by_its_usage(start: Start) -> None:
    front = start(dials={"tokens": 5, "text": " ha"})
    answered = send(front, stream=True)
    names = [name for name, _ in events(answered)]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[2:7] == ["content_block_delta"] * 5
    assert names[7:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "[DONE]" not in answered.text
    eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 0)
    metrics = front.http.get("/metrics").text
    assert 'kimi_serve_completion_tokens_total{tenant="anonymous"} 5.0' in metrics
    assert "kimi_serve_time_to_first_token_seconds_count 1.0" in metrics
    assert "kimi_serve_clients_left_total{" not in metrics
    assert "kimi_serve_broken_streams_total{" not in metrics
    front.assert_idle()


SAME: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "text": ({"messages": HELLO}, {"messages": HELLO}),
    "system": (
        {"system": [text("Be "), text("brief.")], "messages": HELLO},
        {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]},
    ),
    "a system's message in between": (
        {"system": "One.", "messages": [*HELLO, {"role": "system", "content": "Two."}]},
        {"messages": [{"role": "system", "content": "One.Two."}, *HELLO]},
    ),
    "a billing header": (
        {"system": [text("x-anthropic-billing-header: cch=1"), text("Be brief.")], "messages": HELLO},
        {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]},
    ),
    "pictures": (
        {"messages": [{"role": "user", "content": [PICTURE, text("What?"), PICTURE]}]},
        {"messages": [{"role": "user", "content": [CHAT_PICTURE, text("What?"), CHAT_PICTURE]}]},
    ),
    "tools": ({"messages": HELLO, "tools": [TOOL]}, {"messages": HELLO, "tools": [CHAT_TOOL]}),
    "a call and its results": (
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}]},
                {
                    "role": "user",
                    "content": [
                        text("Here:"),
                        {"type": "tool_result", "tool_use_id": "a", "content": [text("1"), PICTURE, text("2")]},
                    ],
                },
            ]
        },
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
                {"role": "tool", "content": "1\n2"},
                {"role": "user", "content": [CHAT_PICTURE]},
                {"role": "user", "content": "Here:"},
            ]
        },
    ),
    "thoughts": (
        {
            "messages": [{"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, text("Yes")]}],
            "chat_template_kwargs": {"keep_thoughts": True},
        },
        {
            "messages": [{"role": "assistant", "content": "Yes", "reasoning": "Hm."}],
            "chat_template_kwargs": {"keep_thoughts": True},
        },
    ),
}


@pytest.mark.parametrize(("ours", "chats"), SAME.values(), ids=SAME)
def test_a_request_costs_what_the_equal_chat_costs(
    idle: Front, ours: dict[str, object], chats: dict[str, object]
) -> None:
    assert count(idle, **ours) == chat_count(idle, **chats) > 0


def test_what_the_engine_makes_of_a_tool_is_what_is_counted(idle: Front) -> None:
    """vLLM writes null for a description that is missing, and puts the fields in its own order."""
    front = idle
    bare = {"type": "function", "function": {"parameters": SCHEMA, "name": "weather"}}
    full = {"type": "function", "function": {"name": "weather", "description": None, "parameters": SCHEMA}}
    counted = chat_count(front, messages=HELLO, tools=[bare])
    assert counted == chat_count(front, messages=HELLO, tools=[full])
    assert counted == count(front, messages=HELLO, tools=[{"name": "weather", "input_schema": SCHEMA}])


def test_a_remote_picture_becomes_a_base64_source_of_its_own_kind(start: Start) -> None:
    async def pictures(scope: object, receive: object, send: object) -> None:
        await Response(png(), media_type="image/jpeg")(scope, receive, send)  # type: ignore[arg-type]

    with in_thread(pictures) as served:
        front = start(media={"allow_private": ["127.0.0.1/32"], "ports": [served.port]})
        source = {"type": "url", "url": f"{served.url}/x"}
        block = {"type": "image", "source": source}
        assert send(front, [{"role": "user", "content": [PICTURE, block, text("Same?")]}]).status_code == 200
    sent = json.loads(front.engines[0].record.requests[-1].body)["messages"][0]["content"]
    media_type, _, name = sent[0]["source"].pop("media_type").partition(";uuid=")
    assert (media_type, len(name)) == ("image/png", 64)
    assert sent[1]["source"].pop("media_type") == f"image/png;uuid={name}"
    assert [block["source"] for block in sent[:2]] == [{"type": "base64", "data": PICTURE["source"]["data"]}] * 2  # type: ignore[index]
    assert sent[2] == text("Same?")
    front.assert_idle()


FILE = {"type": "image", "source": {"type": "file", "file_id": "f"}}
BROKEN = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
BAD: dict[str, tuple[object, dict[str, object], str, str]] = {
    "no messages": (None, {}, "invalid_value", "messages"),
    "no max_tokens": (HELLO, {"max_tokens": None}, "invalid_value", "max_tokens"),
    "too long": (HELLO, {"max_tokens": 9000}, "context_length_exceeded", "8192"),
    "role": ([{"role": "tool", "content": "x"}], {}, "invalid_value", "messages[0].role"),
    "block": ([{"role": "user", "content": [{"type": "video"}]}], {}, "invalid_value", "messages[0].content[0].type"),
    "file": ([{"role": "user", "content": [FILE]}], {}, "invalid_value", "keeps no files"),
    "picture": ([{"role": "user", "content": [BROKEN]}], {}, "unsupported_media_type", "messages[0].content[0]"),
    "server's tool": (HELLO, {"tools": [{"type": "web_search", "name": "x"}]}, "invalid_value", "tools[0]"),
    "hidden tools": (HELLO, {"chat_template_kwargs": {"tools": []}}, "invalid_value", "chat_template_kwargs"),
    "operator's field": (HELLO, {"cache_salt": "a"}, "field_not_allowed", "cache_salt"),
}


@pytest.mark.parametrize(("messages", "options", "reason", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_served_is_refused_in_anthropics_form_and_reaches_no_engine(
    idle: Front, messages: object, options: dict[str, object], reason: str, said: str
) -> None:
    assert said in refused(send(idle, messages, **options), 400, "invalid_request_error", reason)


def test_every_refusal_on_these_paths_has_anthropics_form(start: Start) -> None:
    front = start(keys={"single": "secret-key"})
    refused(send(front), 401, "authentication_error", "missing_key")
    refused(front.http.post("/v1/messages/count_tokens", json={}), 401, "authentication_error", "missing_key")
    refused(front.http.get("/v1/messages"), 405, "invalid_request_error", "method_not_allowed")
    headers = {"x-api-key": "secret-key"}
    body = {"model": "claude", "max_tokens": 5, "messages": HELLO}
    unknown = front.http.post("/v1/messages", json=body, headers=headers)
    refused(unknown, 404, "not_found_error", "model_not_found")
    assert front.http.post("/v1/messages", json={**body, "model": MODEL}, headers=headers).status_code == 200


def test_an_engines_refusal_is_put_into_anthropics_form(start: Start) -> None:
    front = start(dials={"fail": "500"})
    answered = send(front)
    assert answered.status_code == 500
    assert answered.json() == {"type": "error", "error": {"type": "api_error", "message": "the dial says so"}}


def test_an_engine_that_dies_mid_stream_ends_it_with_an_error_event(start: Start) -> None:
    front = start(dials={"fail": "die_mid_stream", "after_tokens": 3})
    answered = send(front, stream=True)
    name, said = events(answered)[-1]
    assert name == "error"
    assert said["type"] == "error"
    assert said["error"]["type"] == "api_error"  # type: ignore[index]
    assert "[DONE]" not in answered.text
    assert 'kimi_serve_broken_streams_total{code="upstream_error"} 1.0' in front.http.get("/metrics").text
    front.assert_idle()


@pytest.mark.parametrize("dials", [{"itl_s": 0.05, "tokens": 1000}, {"ttft_s": 30.0}])
def test_a_client_that_leaves_cancels_upstream(start: Start, dials: dict[str, object]) -> None:
    front = start(dials=dials)
    body = {"model": MODEL, "max_tokens": 2000, "messages": HELLO, "stream": True}
    with httpx.Client(base_url=front.url, timeout=0.3, trust_env=False) as leaving:
        request = leaving.build_request("POST", "/v1/messages", json=body)
        with suppress(httpx.ReadTimeout), closing(leaving.send(request, stream=True)) as stream:
            next(stream.iter_raw())
    eventually(lambda: len(front.engines[0].record.aborts) == 1)
    eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 0)
    front.assert_idle()
