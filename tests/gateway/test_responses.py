"""OpenAI's Responses over real sockets: the client's view, the counts, what needs state, what fails on the way."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import httpx
import openai
import pytest
from starlette.responses import Response

from kimi_serve.testing.serving import in_thread
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.test_gateway import error_of
from tests.gateway.test_messages import CHAT_PICTURE, CHAT_TOOL, DATA, HELLO, SCHEMA, chat_count, events, png
from tests.waiting import eventually

TOOL = {"type": "function", "name": "weather", "description": "Says how it is.", "parameters": SCHEMA}
PICTURE = {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{DATA}"}
CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"x": 1}'}
CHAT_CALL = {"function": {"name": "f", "arguments": '{"x": 1}'}}


def text(said: str, kind: str = "input_text") -> dict[str, object]:
    return {"type": kind, "text": said}


def send(front: Front, **body: object) -> httpx.Response:
    return front.http.post("/v1/responses", json={"model": MODEL, "input": "Hello", **body})


def count(front: Front, **body: object) -> int:
    answered = front.http.post("/v1/responses/input_tokens", json={"model": MODEL, **body})
    assert answered.status_code == 200, answered.text
    assert answered.json()["object"] == "response.input_tokens"
    return int(answered.json()["input_tokens"])


@contextmanager
def client_of(front: Front) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{front.url}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
    ) as client:
        yield client


def test_the_openai_client_reads_answers_and_counts(start: Start) -> None:
    front = start(dials={"tokens": 5, "text": " ha"})
    with client_of(front) as client:
        answered = client.responses.create(model=MODEL, input="Hello", max_output_tokens=50)
        counted = client.responses.input_tokens.count(model=MODEL, input="Hello")
    assert answered.output_text == " ha" * 5
    assert answered.usage is not None
    assert counted.input_tokens == chat_count(front, messages=HELLO)
    assert 'kimi_serve_completion_tokens_total{tenant="anonymous"} 5.0' in front.http.get("/metrics").text
    front.assert_idle()


def test_the_openai_client_reads_streams_to_their_end(start: Start) -> None:
    front = start(dials={"tokens": 5, "text": " ha"})
    with client_of(front) as client:
        said = list(client.responses.create(model=MODEL, input="Hello", stream=True))
    assert "".join(one.delta for one in said if one.type == "response.output_text.delta") == " ha" * 5
    assert [one.sequence_number for one in said] == list(range(len(said)))
    assert said[-1].type == "response.completed"
    assert said[-1].response.output_text == " ha" * 5
    eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 0)
    metrics = front.http.get("/metrics").text
    assert 'kimi_serve_completion_tokens_total{tenant="anonymous"} 5.0' in metrics
    assert "kimi_serve_time_to_first_token_seconds_count 1.0" in metrics
    assert "kimi_serve_clients_left_total{" not in metrics
    assert "kimi_serve_broken_streams_total{" not in metrics
    front.assert_idle()


def test_a_body_goes_on_byte_for_byte_and_the_answer_comes_as_it_is(start: Start) -> None:
    front = start()
    raw = b'{ "model":"kimi-vl", "input":"\\u0048i", "store": false, "reasoning": {"effort": "low"} }'
    answered = front.http.post("/v1/responses", content=raw)
    received = front.engines[0].record.requests[-1]
    assert (received.path, received.body) == ("/v1/responses", raw)
    assert "reasoning" in answered.json()  # a field of the response here, and no thought to be renamed
    front.assert_idle()


SAME: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "text": ({"input": "Hello"}, {"messages": HELLO}),
    "instructions": (
        {"input": HELLO, "instructions": "Be brief."},
        {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]},
    ),
    "pictures": (
        {"input": [{"role": "user", "content": [PICTURE, text("What?"), PICTURE]}]},
        {"messages": [{"role": "user", "content": [CHAT_PICTURE, text("What?"), CHAT_PICTURE]}]},
    ),
    "tools": (
        {"input": "Hello", "tools": [TOOL, {"type": "web_search"}]},
        {"messages": HELLO, "tools": [CHAT_TOOL]},
    ),
    "a tool of a namespace": (
        {"input": "Hello", "tools": [{"type": "namespace", "name": "sky", "description": "", "tools": [TOOL]}]},
        {
            "messages": HELLO,
            "tools": [{"type": "function", "function": {**CHAT_TOOL["function"], "name": "sky__weather"}}],  # type: ignore[dict-item]
        },
    ),
    "a call and its results": (
        {
            "input": [
                *HELLO,
                {"role": "assistant", "content": "I look."},
                CALL,
                CALL,
                {"type": "function_call_output", "call_id": "a", "output": [text("1"), text("2")]},
                {"type": "function_call_output", "call_id": "a", "output": [PICTURE]},
            ]
        },
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "content": "I look.", "tool_calls": [CHAT_CALL, CHAT_CALL]},
                {"role": "tool", "content": "1\n2"},
                {"role": "tool", "content": [CHAT_PICTURE]},
            ]
        },
    ),
    "a custom call": (
        {"input": [{"type": "custom_tool_call", "call_id": "a", "name": "f", "input": "ä"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"input": "ä"}}}]}]},
    ),
    "thoughts": (
        {
            "input": [
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
                {"type": "message", "role": "assistant", "content": [text("Yes", "output_text")]},
            ],
            "chat_template_kwargs": {"keep_thoughts": True},
        },
        {
            "messages": [{"role": "assistant", "content": "Yes", "reasoning": "Hm."}],
            "chat_template_kwargs": {"keep_thoughts": True},
        },
    ),
    "an answer to be continued": (
        {
            "input": [
                *HELLO,
                {
                    "type": "message",
                    "role": "assistant",
                    "status": "incomplete",
                    "content": [text("I", "output_text")],
                },
            ]
        },
        {
            "messages": [*HELLO, {"role": "assistant", "content": "I"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
    ),
}


@pytest.mark.parametrize(("ours", "chats"), SAME.values(), ids=SAME)
def test_a_request_costs_what_the_equal_chat_costs(
    idle: Front, ours: dict[str, object], chats: dict[str, object]
) -> None:
    assert count(idle, **ours) == chat_count(idle, **chats) > 0


def test_a_remote_picture_becomes_a_data_url_in_its_place(start: Start) -> None:
    async def pictures(scope: object, receive: object, send: object) -> None:
        await Response(png(), media_type="image/jpeg")(scope, receive, send)  # type: ignore[arg-type]

    with in_thread(pictures) as served:
        front = start(media={"allow_private": ["127.0.0.1/32"], "ports": [served.port]})
        remote = {**PICTURE, "image_url": f"{served.url}/x", "uuid": "someone-elses"}
        assert send(front, input=[{"role": "user", "content": [text("What?"), remote]}]).status_code == 200
    sent = json.loads(front.engines[0].record.requests[-1].body)
    question, picture = sent["input"][0]["content"]
    assert (question, picture) == (text("What?"), {**PICTURE, "uuid": picture["uuid"]})
    assert picture["uuid"] != "someone-elses"
    front.assert_idle()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("prompt", {"id": "p"}),
        ("background", True),
        ("store", True),
        ("input", [{"type": "item_reference", "id": "msg_1"}]),
    ],
)
def test_what_needs_a_memory_is_refused_on_both_routes(idle: Front, field: str, value: object) -> None:
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        answered = idle.http.post(path, json={"model": MODEL, "input": "Hello", field: value})
        error = error_of(answered, 400, "invalid_value")
        assert str(error["param"]).startswith(field)
        assert "the server keeps no state" in str(error["message"])


FILE = {"type": "input_image", "detail": "auto", "file_id": "f"}
BAD: dict[str, tuple[dict[str, object], str, str]] = {
    "no input": ({"input": None}, "invalid_value", "input"),
    "item": ({"input": [{"type": "computer_call"}]}, "invalid_value", "input[0].type"),
    "role": ({"input": [{"role": "king", "content": "x"}]}, "invalid_value", "input[0].role"),
    "file": ({"input": [{"role": "user", "content": [FILE]}]}, "invalid_value", "input[0].content[0].image_url"),
    "too long an answer": ({"max_output_tokens": 9000}, "context_length_exceeded", "max_output_tokens"),
    "too long a prompt": ({"input": "a b " * 9000}, "context_length_exceeded", "input"),
    "hidden tools": ({"chat_template_kwargs": {"tools": []}}, "invalid_value", "chat_template_kwargs"),
    "operator's field": ({"priority": -1}, "field_not_allowed", "priority"),
}


@pytest.mark.parametrize(("options", "code", "param"), BAD.values(), ids=BAD)
def test_what_cannot_be_served_is_refused_by_its_place_and_reaches_no_engine(
    idle: Front, options: dict[str, object], code: str, param: str
) -> None:
    assert error_of(send(idle, **options), 400, code)["param"] == param


def test_an_engine_that_dies_mid_stream_ends_it_with_an_event_of_the_clients_kind(start: Start) -> None:
    front = start(dials={"fail": "die_mid_stream", "after_tokens": 3})
    answered = send(front, stream=True)
    name, said = events(answered)[-1]
    assert (name, said["type"], said["code"]) == ("error", "error", "upstream_error")
    assert said["sequence_number"] == len(events(answered)) - 1
    with client_of(front) as client:
        assert list(client.responses.create(model=MODEL, input="Hello", stream=True))[-1].type == "error"
    eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 0)
    front.assert_idle()


@pytest.mark.parametrize("dials", [{"itl_s": 0.05, "tokens": 1000}, {"ttft_s": 30.0}])
def test_a_client_that_leaves_cancels_upstream(start: Start, dials: dict[str, object]) -> None:
    front = start(dials=dials)
    with httpx.Client(base_url=front.url, timeout=0.3, trust_env=False) as leaving:
        request = leaving.build_request("POST", "/v1/responses", json={"input": "Hello", "stream": True})
        with suppress(httpx.ReadTimeout), closing(leaving.send(request, stream=True)) as stream:
            next(stream.iter_raw())
    eventually(lambda: len(front.engines[0].record.aborts) == 1)
    eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 0)
    front.assert_idle()
