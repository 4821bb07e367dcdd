"""`detail` and `fit` over real sockets: the engine gets pictures of exactly the tokens counted, or markers."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from kimi_serve.gateway.fitting.turns import MARKER
from kimi_serve.testing.answers import Kind
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.fitting import talks
from tests.gateway.fitting.talks import COUNTS, DIALECTS, PATHS, Json, data
from tests.gateway.test_elision import metric
from tests.gateway.test_gateway import error_of
from tests.gateway.test_tenants import made
from tests.waiting import eventually

BIG = [data(600, 400, seed) for seed in range(5)]
SMALL = data(56, 56)
HISTORY_LIMIT = {"max_model_len": 1200}


def tokens(front: Front, sizes: list[tuple[int, int]]) -> list[int]:
    return [front.gateway.meter.geometry.num_tokens(*size) for size in sizes]


def ask(front: Front, kind: Kind, body: Json, headers: dict[str, str] | None = None) -> httpx.Response:
    """A good answer, whose count is the one that the route of counts tells too, and the engine's pictures' own."""
    told = front.http.post(COUNTS[kind], json=body, headers=headers)
    answer = front.http.post(PATHS[kind], json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    count = told.json()["count" if kind == "chat" else "input_tokens"]
    assert int(answer.headers["x-kimi-serve-prompt-tokens"]) == count
    got = json.loads(front.engines[0].record.requests[-1].body)
    again = front.http.post(COUNTS[kind], json=bare(got), headers=headers).json()
    assert again["count" if kind == "chat" else "input_tokens"] == count  # of what the engine got, as it stands
    if not body.get("stream"):
        assert told.json().get("kimi_serve") == answer.json().get("kimi_serve")
    front.assert_idle()
    return answer


def bare(sent: Json) -> Json:
    """What an engine got, as a client could send it: without names of pictures."""
    return dict(json.loads(json.dumps(sent).replace(";uuid=", ";x="), object_hook=_unnamed))


def _unnamed(found: Json) -> Json:
    found.pop("uuid", None)
    found.pop("cache_salt", None)
    if "media_type" in found:
        found["media_type"] = found["media_type"].partition(";")[0]
    return found


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_low_detail_is_within_its_cap_and_as_close_as_the_shape_allows(start: Start, kind: Kind) -> None:
    front = start(media={"low_tokens": 100})
    parts = [talks.part(kind, BIG[0], "low"), talks.part(kind, BIG[0], "high"), talks.part(kind, BIG[0])]
    answer = ask(front, kind, talks.body(kind, [("user", parts)]))
    low, high, auto = talks.sizes(front)
    assert (high, auto) == ((600, 400), (600, 400))
    assert low == (336, 224)
    assert tokens(front, [low]) == [96]
    assert front.gateway.meter.geometry.num_tokens(337, 225) > 100
    told = answer.json()["kimi_serve"]
    assert told["image_tokens"] == [{"before": 330, "after": 96}, *[{"before": 330, "after": 330}] * 2]
    assert told["prompt_tokens_before"] - told["prompt_tokens"] == 330 - 96
    assert (told["images"], told["images_scaled"], told["images_left_out"], told["factor"]) == (3, 1, 0, 1.0)
    assert talks.pictures(front)[1] == base64.b64decode(BIG[0])


def test_a_cap_for_images_without_a_detail_is_the_operators(start: Start) -> None:
    front = start(media={"auto_tokens": 100})
    parts = [talks.part("chat", BIG[0]), talks.part("chat", BIG[0], "auto"), talks.part("chat", BIG[0], "original")]
    ask(front, "chat", talks.body("chat", [("user", parts)]))
    assert talks.sizes(front) == [(336, 224), (336, 224), (600, 400)]
    front.http.post(PATHS["messages"], json=talks.body("messages", [("user", [talks.part("messages", BIG[1])])]))
    assert talks.sizes(front) == [(336, 224)]


def test_an_image_under_its_cap_goes_on_byte_for_byte_and_the_answer_is_the_engines(start: Start) -> None:
    front = start()
    answer = ask(front, "chat", talks.body("chat", [("user", [talks.part("chat", SMALL, "low")])]))
    assert talks.pictures(front) == [base64.b64decode(SMALL)]
    assert "kimi_serve" not in answer.json()
    assert "x-kimi-serve-fit" not in answer.headers
    assert metric(front, "scaled_images_total") == 0


@pytest.mark.parametrize(
    ("kind", "where"),
    [("chat", "messages[0].content[0].image_url.detail"), ("responses", "input[0].content[0].detail")],
)
def test_an_unknown_detail_is_refused_by_its_place(start: Start, kind: Kind, where: str) -> None:
    front = start()
    body = talks.body(kind, [("user", [talks.part(kind, SMALL, "medium")])])
    assert error_of(front.http.post(PATHS[kind], json=body), 400, "invalid_value")["param"] == where
    assert front.engines[0].record.count == 0


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("fit", ["shrink", 5, ["error"], True])
def test_an_unknown_fit_is_refused(start: Start, kind: Kind, fit: object) -> None:
    front = start()
    body = talks.history(kind, [SMALL], fit=fit)
    for path in (PATHS[kind], COUNTS[kind]):
        answer = front.http.post(path, json=body)
        assert answer.status_code == 400
        assert "fit: " in answer.text
        assert "expected error, downscale, elide_oldest" in answer.text


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("fit", [None, "error"])
def test_without_a_wish_what_does_not_fit_is_refused_as_ever(start: Start, kind: Kind, fit: str | None) -> None:
    front = start(dials=HISTORY_LIMIT)
    answer = front.http.post(PATHS[kind], json=talks.history(kind, BIG, fit=fit))
    assert answer.headers["x-kimi-serve-reason"] == "context_length_exceeded"
    assert "1650 of 5 images (330, 330, 330, 330, 330)" in answer.text
    assert front.engines[0].record.count == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", DIALECTS)
def test_downscale_makes_all_images_smaller_until_the_prompt_fits(start: Start, kind: Kind, stream: bool) -> None:
    front = start(dials=HISTORY_LIMIT)
    answer = ask(front, kind, talks.history(kind, BIG, fit="downscale", stream=stream))
    told = json.loads(answer.headers["x-kimi-serve-fit"])
    assert told["prompt_tokens"] == int(answer.headers["x-kimi-serve-prompt-tokens"]) <= 1200 - 8
    after = tokens(front, talks.sizes(front))
    assert after == [after[0]] * 5
    assert told["prompt_tokens_before"] - told["prompt_tokens"] == 1650 - sum(after)
    assert after[0] <= 330 * told["factor"] < 330
    assert (told["images"], told["images_scaled"], told["images_left_out"]) == (5, 5, 0)
    if not stream:
        whole = answer.json()["kimi_serve"]
        assert whole.pop("image_tokens") == [{"before": 330, "after": count} for count in after]
        assert whole == told
    assert metric(front, 'scaled_images_total{by="downscale"}') == 5
    assert metric(front, "spared_prompt_tokens_total") == 1650 - sum(after)


@pytest.mark.parametrize("kind", DIALECTS)
def test_elision_puts_a_marker_in_the_place_of_the_oldest(start: Start, kind: Kind) -> None:
    front = start(dials=HISTORY_LIMIT)
    answer = ask(front, kind, talks.history(kind, BIG, fit="elide_oldest"))
    shown = [one for one in talks.got(front) if one.get("text") != "And this one?"]
    gone = [one.get("text") == MARKER for one in shown]
    assert gone == [True, True, False, False, False][: len(gone)]
    assert talks.pictures(front) == [base64.b64decode(one) for one in BIG[2:]]
    told = answer.json()["kimi_serve"]
    assert (told["images"], told["images_scaled"], told["images_left_out"]) == (5, 0, 2)
    assert [one["after"] for one in told["image_tokens"]] == [None, None, 330, 330, 330]
    assert told["prompt_tokens"] + 330 > 1200 - 8  # one less would not do
    assert metric(front, "left_out_images_total") == 2


@pytest.mark.parametrize("fit", ["downscale", "elide_oldest"])
@pytest.mark.parametrize("kind", DIALECTS)
def test_what_fits_is_not_touched_and_the_answer_says_so(start: Start, kind: Kind, fit: str) -> None:
    front = start()
    answer = ask(front, kind, talks.history(kind, BIG[:2], fit=fit))
    assert talks.pictures(front) == [base64.b64decode(one) for one in BIG[:2]]
    told = answer.json()["kimi_serve"]
    assert told["prompt_tokens_before"] == told["prompt_tokens"]
    assert (told["images_scaled"], told["images_left_out"], told["factor"]) == (0, 0, 1.0)


@pytest.mark.parametrize(("fit", "said"), [("downscale", "fit downscale"), ("elide_oldest", "fit elide_oldest")])
@pytest.mark.parametrize("kind", DIALECTS)
def test_what_cannot_be_made_to_fit_is_refused_with_all_counts(start: Start, kind: Kind, fit: str, said: str) -> None:
    front = start(dials={"max_model_len": 400})
    for path in (PATHS[kind], COUNTS[kind]):
        answer = front.http.post(path, json=talks.history(kind, BIG, fit=fit, max_tokens=100))
        assert answer.headers["x-kimi-serve-reason"] == "context_length_exceeded"
        assert "1650 of 5 images (330, 330, 330, 330, 330)" in answer.text
        assert f"{said} brings the prompt down to " in answer.text
    assert front.engines[0].record.count == 0
    front.assert_idle()


def test_images_of_the_last_turn_are_never_left_out(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT)
    last = [talks.part("chat", one) for one in BIG[1:]]
    turns = [("user", [talks.part("chat", BIG[0])]), ("assistant", "One."), ("user", last)]
    answer = front.http.post(PATHS["chat"], json=talks.body("chat", turns, fit="elide_oldest"))
    error_of(answer, 400, "context_length_exceeded")
    ask(front, "chat", talks.body("chat", [*turns[:2], ("user", last[:3])], fit="elide_oldest"))
    assert talks.pictures(front) == [base64.b64decode(one) for one in BIG[1:4]]


def test_what_tools_showed_before_the_last_turn_goes_and_what_the_user_sent_last_stays(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT)
    turns: list[Json] = [{"role": "user", "content": [talks.part("chat", BIG[0])]}]
    for number, one in enumerate(BIG[1:]):
        call = {"id": f"c{number}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
        turns.append({"role": "tool", "tool_call_id": f"c{number}", "content": [talks.part("chat", one)]})
    ask(front, "chat", {"model": MODEL, "messages": turns, "max_tokens": 8, "fit": "elide_oldest"})
    assert talks.pictures(front) == [base64.b64decode(one) for one in (BIG[0], BIG[3], BIG[4])]


def test_a_screenshot_in_a_tools_result_of_messages_becomes_a_marker_there(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT)
    turns: list[tuple[str, object]] = [("user", "Look.")]
    for number, one in enumerate(BIG):
        turns.append(("assistant", [{"type": "tool_use", "id": f"t{number}", "name": "look", "input": {}}]))
        shown = [talks.text("messages", "Here."), talks.part("messages", one)]
        turns.append(("user", [{"type": "tool_result", "tool_use_id": f"t{number}", "content": shown}]))
    ask(front, "messages", talks.body("messages", turns, fit="elide_oldest"))
    markers = [one for one in talks.got(front) if one.get("text") == MARKER]
    assert len(markers) == 5 - len(talks.pictures(front)) >= 2
    assert talks.pictures(front) == [base64.b64decode(one) for one in BIG[len(markers) :]]


@pytest.mark.parametrize("kind", DIALECTS)
def test_a_history_of_more_images_than_are_taken_becomes_acceptable(start: Start, kind: Kind) -> None:
    front = start(media={"max_images": 3})
    body = talks.history(kind, BIG)
    assert front.http.post(PATHS[kind], json=body).headers["x-kimi-serve-reason"] == "too_many_images"
    answer = ask(front, kind, {**body, "fit": "elide_oldest"})
    assert talks.pictures(front) == [base64.b64decode(one) for one in BIG[2:]]
    told = answer.json()["kimi_serve"]
    assert (told["images"], told["images_left_out"], told["prompt_tokens_before"]) == (5, 2, None)
    assert told["image_tokens"][:3] == [{"before": None, "after": None}] * 2 + [{"before": 330, "after": 330}]


def test_images_over_the_number_are_not_even_fetched(start: Start) -> None:
    front = start(media={"max_images": 1})
    turns = [
        ("user", [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/never.png"}}]),
        ("assistant", "Seen."),
        ("user", [talks.part("chat", SMALL)]),
    ]
    ask(front, "chat", talks.body("chat", turns, fit="elide_oldest"))
    assert talks.pictures(front) == [base64.b64decode(SMALL)]


def test_both_too_many_and_too_large_is_settled_in_one_go(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT, media={"max_images": 4})
    answer = ask(front, "chat", talks.history("chat", BIG, fit="elide_oldest"))
    assert [one["before"] for one in answer.json()["kimi_serve"]["image_tokens"]] == [None, 330, 330, 330, 330]
    assert len(talks.pictures(front)) == 3


def test_the_openai_package_finds_what_was_done_beside_the_usage(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT)
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", http_client=httpx.Client(trust_env=False)) as client:
        chat, wish = talks.history("chat", BIG), {"fit": "downscale"}
        answer = client.chat.completions.create(**chat, extra_body=wish)
        assert answer.usage is not None
        assert answer.model_extra is not None
        assert answer.model_extra["kimi_serve"]["images_scaled"] == 5
        said = client.responses.create(**talks.history("responses", BIG), extra_body=wish)
        assert said.model_extra is not None
        assert said.model_extra["kimi_serve"]["images_scaled"] == 5
        raw = client.chat.completions.with_raw_response.create(**chat, extra_body=wish, stream=True)
        assert json.loads(raw.headers["x-kimi-serve-fit"])["images_scaled"] == 5
        assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse() if chunk.choices)


def test_the_anthropic_package_finds_it_too(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT)
    with (
        anthropic.DefaultHttpxClient(trust_env=False) as http,
        anthropic.Anthropic(base_url=front.url, api_key="none", http_client=http) as client,
    ):
        answer = client.messages.create(**talks.history("messages", BIG), extra_body={"fit": "elide_oldest"})
        assert answer.model_extra is not None
        assert answer.model_extra["kimi_serve"]["images_left_out"] == 2


def test_a_resent_history_is_scaled_once_and_then_known_by_name(start: Start) -> None:
    front = start(dials={**HISTORY_LIMIT, "image_memory": 100})
    body = talks.history("chat", BIG, fit="downscale")
    for _ in range(2):
        assert front.http.post(PATHS["chat"], json=body).status_code == 200
        front.assert_idle()
    first, second = (json.loads(one.body)["messages"] for one in front.engines[0].record.requests)
    names = [[part["uuid"] for one in turns for part in one["content"] if "uuid" in part] for turns in (first, second)]
    assert names[0] == names[1]
    assert second[0]["content"][1]["image_url"] is None
    assert metric(front, "scale_cache_hits_total") == 5
    assert metric(front, "scale_duration_seconds_count") == 5


def test_the_same_picture_twice_in_a_history_is_scaled_once(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT)
    ask(front, "chat", talks.history("chat", [BIG[0]] * 5, fit="downscale"))
    assert metric(front, "scale_duration_seconds_count") == 1
    assert len(set(talks.sizes(front))) == 1


def test_no_tenant_profits_from_what_was_scaled_for_another(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    headers = [made(file, "acme"), made(file, "other")]
    front = start(dials=HISTORY_LIMIT, keys={"file": str(file)})
    for header in headers:
        front.http.post(PATHS["chat"], json=talks.history("chat", BIG[:1] * 5, fit="downscale"), headers=header)
    assert metric(front, "scale_cache_hits_total") == 0
    assert metric(front, "scale_duration_seconds_count") == 2


def test_scaling_that_takes_longer_than_a_request_may_wait_is_told_to_come_back(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT, admission={"deadline_s": 0.001})
    answer = front.http.post(PATHS["chat"], json=talks.history("chat", BIG, fit="downscale"))
    assert "5 images were not scaled down" in str(error_of(answer, 503, "queue_timeout")["message"])
    assert answer.headers["retry-after"]
    assert front.engines[0].record.count == 0
    front.assert_idle()


def test_many_at_once_are_all_answered_by_a_few_processes(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT, scaling={"cache_bytes": 0})

    def one(number: int) -> list[int]:
        own = [data(600, 400, 100 * number + seed) for seed in range(5)]
        with httpx.Client(base_url=front.url, timeout=120, trust_env=False) as http:
            answer = http.post(PATHS["chat"], json=talks.history("chat", own, fit="downscale"))
        assert answer.status_code == 200, answer.text
        return [each["after"] for each in answer.json()["kimi_serve"]["image_tokens"]]

    with ThreadPoolExecutor(6) as threads:
        counts = list(threads.map(one, range(6)))
    assert len({tuple(one) for one in counts}) == 1
    assert {tuple(tokens(front, talks.sizes(front, index))) for index in range(6)} == {tuple(counts[0])}
    assert metric(front, "scale_duration_seconds_count") == 30
    front.assert_idle()


def test_the_log_says_what_was_done(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    front = start(dials=HISTORY_LIMIT)
    with caplog.at_level("INFO", "kimi_serve.access"):
        ask(front, "chat", talks.history("chat", BIG, fit="elide_oldest"))
        eventually(lambda: any(one.__dict__.get("images_left_out") for one in caplog.records))
    lines = [one.__dict__ for one in caplog.records if one.__dict__.get("route") == PATHS["chat"]]
    assert [(one["fit"], one["images"], one["images_left_out"], one["images_scaled"]) for one in lines] == [
        ("elide_oldest", 3, 2, 0)
    ]
    assert lines[0]["prompt_tokens_before"] - lines[0]["prompt_tokens"] > 600


def test_a_count_decodes_nothing(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT)
    told = front.http.post("/tokenize", json=talks.history("chat", BIG, fit="downscale")).json()
    assert len(told["tokens"]) == told["count"] == told["kimi_serve"]["prompt_tokens"]
    assert told["image_tokens"] == [one["after"] for one in told["kimi_serve"]["image_tokens"]]
    assert metric(front, "scale_duration_seconds_count") == metric(front, "scaled_images_total") == 0


def test_a_picture_that_cannot_be_decoded_is_refused_by_its_place_only_where_it_must_be(start: Start) -> None:
    front = start(dials=HISTORY_LIMIT)
    cut = base64.b64encode(base64.b64decode(BIG[0])[:-40]).decode()
    body = talks.history("chat", [*BIG[:4], cut], fit="downscale")
    error = error_of(front.http.post(PATHS["chat"], json=body), 400, "invalid_image")
    assert error["param"] == "messages[8].content[1]"
    assert front.engines[0].record.count == 0
    assert metric(front, 'scale_failures_total{code="invalid_image"}') == 1
    front.assert_idle()
    assert front.http.post(PATHS["chat"], json=talks.history("chat", [cut])).status_code == 200
