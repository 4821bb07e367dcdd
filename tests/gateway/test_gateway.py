"""The gateway over real sockets, in front of fake engines: what goes through, what is refused, what is given back."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import httpx
import openai
import pytest
from PIL import Image

from kimi_serve.gateway.forward import rename_thoughts
from tests.gateway.conftest import MODEL, Front, Start
from tests.waiting import eventually


def png(width: int = 56, height: int = 84) -> str:
    stored = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(stored, "PNG")
    return "data:image/png;base64," + base64.b64encode(stored.getvalue()).decode()


def image(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    error: dict[str, object] = response.json()["error"]
    assert error["code"] == code
    return error


def test_a_body_that_needs_no_rewriting_goes_on_byte_for_byte(start: Start) -> None:
    front = start()
    raw = b'{ "model":"kimi-vl",\n "messages":[{"role":"user","content":"\\u0048i"}], "unknown_field": 1.50 }'
    assert front.http.post("/v1/chat/completions", content=raw).status_code == 200
    assert front.engines[0].record.requests[-1].body == raw
    front.assert_idle()


def test_the_openai_client_reads_answers_and_streams(start: Start) -> None:
    front = start(dials={"tokens": 5, "text": " ha"})
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", http_client=httpx.Client(trust_env=False)) as client:
        messages = [{"role": "user", "content": "Hello"}]
        whole = client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[call-overload]
        stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True)  # type: ignore[call-overload]
        assert whole.choices[0].message.content == " ha" * 5
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == " ha" * 5
        assert [model.id for model in client.models.list()] == [MODEL]
    eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 0)
    front.assert_idle()


def test_a_prompt_that_cannot_fit_is_refused_with_all_its_counts(start: Start) -> None:
    front = start()
    error = error_of(
        front.chat([image(png()), {"type": "text", "text": "what?"}], max_tokens=9000), 400, "context_length_exceeded"
    )
    assert "6 of 1 images (6)" in str(error["message"])
    assert "8192" in str(error["message"])
    assert front.engines[0].record.count == 0


LONGEST = 131_072  # tokens of Kimi-VL's context
BYTE = "\x01"  # one token each: the golden vocabulary merges none


@pytest.mark.parametrize("pictures", [0, 512])
def test_a_prompt_of_the_whole_context_less_one_token_is_admitted(start: Start, pictures: int) -> None:
    front = start(dials={"max_model_len": LONGEST})
    shown = [image(png(420, 420))] * pictures

    def asked(more: int, max_tokens: int) -> httpx.Response:
        return front.chat([*shown, {"type": "text", "text": BYTE * more}], max_tokens=max_tokens)

    spare = LONGEST - int(asked(1, 1).headers["x-kimi-serve-prompt-tokens"]) + 1
    whole = asked(spare - 1, 1)
    assert (whole.status_code, whole.headers["x-kimi-serve-prompt-tokens"]) == (200, str(LONGEST - 1))
    error = error_of(asked(spare - 1, 2), 400, "context_length_exceeded")
    assert error["param"] == "max_tokens"
    assert f"has {LONGEST - 1} tokens" in str(error["message"])
    error = error_of(asked(spare, 1), 400, "context_length_exceeded")
    assert error["param"] == "messages"
    assert f"has {LONGEST} tokens" in str(error["message"])
    assert f"1 more than the model's limit of {LONGEST}" in str(error["message"])
    assert front.engines[0].record.count == 2
    front.assert_idle()


HELLO = [{"role": "user", "content": "x"}]
BAD_FIELDS = {
    "messages": (None, "messages"),
    "messages[0]": ([1], "messages[0]"),
    "role": ([{"role": "king", "content": "x"}], "messages"),
}


@pytest.mark.parametrize(("raw", "code"), [(b"not json", "invalid_json"), (b"[]", "invalid_json")])
def test_a_body_that_is_no_object_is_refused(start: Start, raw: bytes, code: str) -> None:
    front = start()
    error_of(front.http.post("/v1/chat/completions", content=raw), 400, code)
    front.assert_idle()


@pytest.mark.parametrize(("messages", "param"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_bad_messages_are_refused_by_place(start: Start, messages: object, param: str) -> None:
    front = start()
    body = {"model": MODEL, "messages": messages}
    assert error_of(front.http.post("/v1/chat/completions", json=body), 400, "invalid_value")["param"] == param
    front.assert_idle()


@pytest.mark.parametrize(
    ("field", "value", "status", "code"),
    [
        ("max_tokens", 0, 400, "invalid_value"),
        ("max_tokens", True, 400, "invalid_value"),
        ("n", 99, 400, "invalid_value"),
        ("stream", "yes", 400, "invalid_value"),
        ("priority", -9, 400, "field_not_allowed"),
        ("cache_salt", "a", 400, "field_not_allowed"),
        ("model", "gpt", 404, "model_not_found"),
    ],
)
def test_a_bad_field_is_refused_by_name_and_reaches_no_engine(
    start: Start, field: str, value: object, status: int, code: str
) -> None:
    front = start()
    body = {"model": MODEL, "messages": HELLO, field: value}
    assert error_of(front.http.post("/v1/chat/completions", json=body), status, code)["param"] == field
    assert front.engines[0].record.count == 0
    front.assert_idle()


def test_a_picture_is_named_by_its_place_when_it_is_refused(start: Start) -> None:
    front = start()
    broken = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\nrubbish").decode()
    error = error_of(front.chat([image(png()), image(broken)]), 400, "invalid_image")
    assert error["param"] == "messages[0].content[1]"
    remote = error_of(front.chat([image("http://127.0.0.1:9/x.png")]), 400, "invalid_media_url")
    assert remote["param"] == "messages[0].content[0]"
    private = error_of(front.chat([image("http://127.0.0.1/x.png")]), 400, "media_url_forbidden")
    assert private["param"] == "messages[0].content[0]"
    error_of(front.chat([image(png())] * 513), 400, "too_many_images")
    assert not front.engines[0].record.requests


def test_owned_fields_and_media_ids_are_stripped_where_the_policy_says_so(start: Start) -> None:
    front = start(policy={"owned_fields": "strip"})
    part = {**image(png()), "uuid": "someone-elses"}
    assert front.chat([part], priority=-5, seed=7).status_code == 200
    sent = json.loads(front.engines[0].record.requests[-1].body)
    assert "priority" not in sent
    assert sent["messages"][0]["content"][0]["uuid"] != "someone-elses"
    assert sent["seed"] == 7


def test_a_body_over_the_limit_is_refused_before_it_is_read(start: Start) -> None:
    front = start(body={"max_bytes": 10_000})
    error_of(front.chat("x" * 20_000), 413, "body_too_large")

    def endless() -> object:
        for _ in range(100):
            yield b"x" * 1000

    error_of(front.http.post("/v1/chat/completions", content=endless()), 413, "body_too_large")  # type: ignore[arg-type]
    front.assert_idle()


def test_everything_else_of_the_engine_is_unreachable(start: Start) -> None:
    front = start()
    for path in (
        "/invocations",
        "/v1/embeddings",
        "/pause",
        "/collective_rpc",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/dials",
        "/health",
    ):
        error_of(front.http.post(path, json={}), 404, "not_found")
    error_of(front.http.get("/v1/chat/completions"), 405, "method_not_allowed")


def test_an_engine_that_fails_before_its_answer_is_replaced_by_another(start: Start) -> None:
    front = start(engines=2)
    front.engines[0].dials = front.engines[0].dials.turned({"fail": "refuse"})
    assert [front.chat(f"question {k}").status_code for k in range(8)] == [200] * 8
    assert len(front.engines[1].record.requests) == 8
    front.assert_idle()


def test_a_request_that_lost_two_engines_asks_a_third_only_within_the_limit_of_retries(start: Start) -> None:
    front = start(engines=3, dials={"fail": "refuse"}, replicas={"retry_percent": 0})
    while front.gateway.retries.try_spend():
        pass
    error_of(front.chat("x"), 502, "upstream_error")
    assert sum(engine.record.count for engine in front.engines) == 2
    front.assert_idle()


def test_an_engine_that_dies_mid_stream_ends_the_stream_with_an_error_event(start: Start) -> None:
    front = start(dials={"fail": "die_mid_stream", "after_tokens": 3})
    response = front.chat("hello", stream=True)
    assert response.status_code == 200
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "upstream_error"
    front.assert_idle()


@pytest.mark.parametrize("dials", [{"itl_s": 0.05, "tokens": 1000}, {"ttft_s": 30.0}, {"fail": "hang_before_headers"}])
def test_a_client_that_leaves_cancels_upstream_within_a_second(start: Start, dials: dict[str, object]) -> None:
    front = start(dials=dials)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}
    with httpx.Client(base_url=front.url, timeout=0.3, trust_env=False) as leaving:
        request = leaving.build_request("POST", "/v1/chat/completions", json=body)
        with suppress(httpx.ReadTimeout), closing(leaving.send(request, stream=True)) as stream:
            next(stream.iter_raw())
    eventually(lambda: len(front.engines[0].record.aborts) == 1)
    eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 0)
    front.assert_idle()


def test_a_client_that_leaves_the_queue_is_forgotten(start: Start) -> None:
    front = start(dials={"ttft_s": 1.0}, admission={"requests": 1})
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    with httpx.Client(base_url=front.url, timeout=0.3, trust_env=False) as leaving:
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                leaving.post("/v1/chat/completions", json=body)
    eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 0)
    assert len(front.engines[0].record.requests) <= 2
    front.assert_idle()


def test_a_queue_that_is_full_says_when_to_come_back(start: Start) -> None:
    front = start(dials={"itl_s": 0.5}, admission={"requests": 1, "waiting": 0})
    with httpx.Client(base_url=front.url, timeout=10, trust_env=False) as other:
        body = {"model": MODEL, "messages": HELLO, "stream": True}
        with other.stream("POST", "/v1/chat/completions", json=body):
            assert front.gateway.admission.snapshot().outstanding.requests == 1
            refused = front.chat("y")
    error_of(refused, 503, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-kimi-serve-reason"] == "queue_full"


def test_a_stream_that_waits_gets_comments(start: Start) -> None:
    front = start(dials={"ttft_s": 0.5, "tokens": 2}, stream={"keep_alive_s": 0.1})
    text = front.chat("x", stream=True).text
    assert text.startswith(":")
    assert text.rstrip().endswith("data: [DONE]")


def test_a_stream_that_waited_for_its_turn_gives_back_what_it_got(start: Start) -> None:
    front = start(dials={"itl_s": 0.05, "tokens": 10}, stream={"keep_alive_s": 0.1}, admission={"requests": 1})
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(front.chat, "hello", stream=True) for _ in range(2)]
    assert [answer.result().text.count('"content":" token"') for answer in answers] == [10, 10]
    front.assert_idle()


@pytest.mark.parametrize(("slots", "places"), [(4, 5), (16, 18), (64, 72), (400, 256), (0, 256)])
def test_an_engine_gets_what_it_computes_at_once_and_a_little_more(start: Start, slots: int, places: int) -> None:
    front = start(dials={"slots": slots})
    assert front.gateway.admission.snapshot().capacity.requests == places


def test_engines_are_counted_each_by_what_it_says(start: Start) -> None:
    front = start(engines=2, dials={"slots": 16}, admission={"requests": 20})
    capacity = front.gateway.admission.snapshot
    assert capacity().capacity.requests == 36
    front.engines[0].dials = front.engines[0].dials.turned({"slots": 64})
    eventually(lambda: capacity().capacity.requests == 38)


def test_a_stream_whose_wait_ends_in_vain_is_refused_by_its_status(start: Start) -> None:
    admission = {"requests": 1, "deadline_s": 0.5}
    front = start(dials={"ttft_s": 2.0, "tokens": 2}, stream={"keep_alive_s": 0.1}, admission=admission)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(front.chat, "hello")
        eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 1)
        late = front.chat("hello", stream=True)
    error_of(late, 503, "queue_timeout")
    assert int(late.headers["retry-after"]) >= 1
    assert first.result().status_code == 200
    front.assert_idle()


def test_readiness_follows_the_engines(start: Start) -> None:
    front = start()
    assert front.http.get("/readyz").status_code == 200
    front.gateway.admission.drain(refuse_waiting=True)
    assert front.http.get("/readyz").json()["status"] == "draining"
    assert front.http.get("/livez").status_code == 200
    error_of(front.chat("x"), 503, "draining")


def test_tokenize_counts_pictures_without_an_engine(start: Start) -> None:
    front = start()
    body = {"model": MODEL, "messages": [{"role": "user", "content": [image(png(280, 140))]}]}
    counted = front.http.post("/tokenize", json=body).json()
    assert counted["image_tokens"] == [50]
    assert counted["count"] == len(counted["tokens"])
    assert not front.engines[0].record.requests


def test_metrics_count_requests_and_tokens(start: Start) -> None:
    front = start(dials={"tokens": 4})
    front.chat([image(png(280, 140))])
    text = front.http.get("/metrics").text
    assert 'kimi_serve_requests_total{route="/v1/chat/completions",status="200",tenant="anonymous"} 1.0' in text
    assert 'kimi_serve_image_tokens_total{tenant="anonymous"} 50.0' in text
    assert 'kimi_serve_completion_tokens_total{tenant="anonymous"} 4.0' in text


def test_thoughts_have_the_name_that_clients_know() -> None:
    assert rename_thoughts(b'{"delta":{"reasoning":"x \\"reasoning\\": y"}}', "reasoning_content") == (
        b'{"delta":{"reasoning_content":"x \\"reasoning\\": y"}}'
    )


def test_one_key_for_everybody_is_asked_for(start: Start) -> None:
    front: Front = start(keys={"single": "secret-key"})
    error_of(front.chat("x"), 401, "missing_key")
    error_of(front.chat("x", headers={"authorization": "Bearer wrong"}), 401, "invalid_key")
    assert front.chat("x", headers={"authorization": "Bearer secret-key"}).status_code == 200
    assert "secret-key" not in front.http.get("/metrics").text
    assert b"secret-key" not in b"".join(v for r in front.engines[0].record.requests for _, v in r.headers)


def test_every_prompt_of_a_list_is_counted(start: Start) -> None:
    front = start()
    one = front.http.post("/v1/completions", json={"model": MODEL, "prompt": "Hello there", "max_tokens": 2})
    two = front.http.post(
        "/v1/completions", json={"model": MODEL, "prompt": ["Hello there", [1, 2, 3]], "max_tokens": 2}
    )
    counted = [int(answer.headers["x-kimi-serve-prompt-tokens"]) for answer in (one, two)]
    assert counted[1] == counted[0] + 3 > 3
    error_of(
        front.http.post("/v1/completions", json={"model": MODEL, "prompt": [[1] * 9000]}),
        400,
        "context_length_exceeded",
    )
    front.assert_idle()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "image_embeds", "image_embeds": {"image_embeds": "AAAA", "image_grid_hws": [4, 6]}},
        {"type": "image_embeds", "image_embeds": None, "uuid": "x"},
        {"image_embeds": "AAAA"},
    ],
)
def test_a_towers_rows_are_refused_before_any_engine_sees_them(start: Start, part: dict[str, object]) -> None:
    front = start()
    content = [{"type": "text", "text": "What is this?"}, part]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    error = error_of(front.http.post("/v1/chat/completions", json=body), 400, "invalid_value")
    assert error["param"] == "messages[0].content[1]"
    assert "image_embeds cannot be counted" in str(error["message"])
    assert not front.engines[0].record.requests
    front.assert_idle()
