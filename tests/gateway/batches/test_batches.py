"""OpenAI's batches end to end with the openai package, over real sockets; the engine is a double."""

import json
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from kimi_serve.gateway.media import data_urls
from kimi_serve.testing.answers import ROUTES, Kind
from tests.gateway.batches.conftest import Json, Open, chat_body, ended, lines_of, order, read
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.test_gateway import image, png
from tests.gateway.test_tenants import keys, made, tenant_metric
from tests.waiting import eventually

PATHS = {kind: path for path, kind in ROUTES.items()}


@pytest.fixture
def front(start: Start, tmp_path: Path) -> Front:
    return start(dials={"tokens": 3}, files={"folder": tmp_path / "files"}, batches={"retry_s": 0.05})


@pytest.fixture
def client(front: Front, client_of: Open) -> openai.OpenAI:
    return client_of(front)


def test_every_line_is_answered_in_openais_form(client: openai.OpenAI, front: Front) -> None:
    bodies = [chat_body(f"Number {number}") for number in range(20)]
    batch = order(client, lines_of(bodies), metadata={"for": "a test"})
    assert (batch.status, batch.object, batch.metadata) == ("validating", "batch", {"for": "a test"})
    assert batch.expires_at == batch.created_at + 86_400
    done = ended(client, batch.id)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": 20, "completed": 20, "failed": 0}
    assert done.in_progress_at <= done.finalizing_at <= done.completed_at  # type: ignore[operator]
    assert done.error_file_id is None
    told = read(client, done.output_file_id)
    assert [line["custom_id"] for line in told] == [f"line-{number}" for number in range(20)]
    assert len({line["id"] for line in told}) == 20
    for line in told:
        assert line["error"] is None
        response = line["response"]
        assert isinstance(response, dict)
        assert response["status_code"] == 200
        assert response["request_id"].startswith(f"{batch.id}-")
        assert response["body"]["choices"][0]["message"]["content"] == " token" * 3
    usages = [line["response"]["body"]["usage"] for line in told]  # type: ignore[index]
    assert done.usage is not None
    assert done.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages) > 20
    assert done.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages) == 60
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    output = client.files.retrieve(done.output_file_id or "")
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    asked = sorted(json.loads(request.body)["messages"][0]["content"] for request in front.engines[0].record.requests)
    assert asked == sorted(f"Number {number}" for number in range(20))
    front.assert_idle()


@pytest.mark.parametrize("kind", ["chat", "completion", "responses"])
def test_every_endpoint_can_be_a_batch(client: openai.OpenAI, kind: Kind) -> None:
    body: Json = {"model": MODEL, "prompt": "Once"} if kind == "completion" else {"model": MODEL, "input": "Hello"}
    batch = order(client, lines_of([chat_body() if kind == "chat" else body], PATHS[kind]), PATHS[kind])
    done = ended(client, batch.id)
    (line,) = read(client, done.output_file_id)
    response = line["response"]
    assert isinstance(response, dict)
    assert done.usage is not None
    assert done.usage.total_tokens == response["body"]["usage"]["total_tokens"] > 0
    names = {"chat": "chat.completion", "completion": "text_completion", "responses": "response"}
    assert response["body"]["object"] == names[kind]


def test_pictures_go_by_their_bytes_and_by_their_ids(client: openai.OpenAI, front: Front) -> None:
    url = png(280, 140)
    file = client.files.create(file=("x.png", data_urls.decode(url, max_bytes=1 << 20)), purpose="vision")
    parts: list[object] = [image(url), {"type": "file", "file": {"file_id": file.id}}]
    done = ended(client, order(client, lines_of([chat_body([part]) for part in parts])).id)
    assert done.status == "completed"
    sent = [json.loads(request.body)["messages"][0]["content"][0] for request in front.engines[0].record.requests]
    assert sent[0]["uuid"] == sent[1]["uuid"]  # the second may stay out: the engine holds it by then


def test_what_is_wrong_with_lines_is_told_by_number_before_anything_is_asked(
    client: openai.OpenAI, front: Front
) -> None:
    good = lines_of([chat_body()])
    done = ended(client, order(client, good + b"{}\n" + good).id)
    assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
    assert done.errors is not None
    assert done.errors.data is not None
    assert [(one.line, one.code) for one in done.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]
    assert front.engines[0].record.count == 0


def test_lines_that_are_refused_are_in_the_error_file(client: openai.OpenAI) -> None:
    bodies = [chat_body(), chat_body(max_tokens=90_000), chat_body(model="gpt-4")]
    done = ended(client, order(client, lines_of(bodies)).id)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 2)
    assert [line["custom_id"] for line in read(client, done.output_file_id)] == ["line-0"]
    told = [(line["custom_id"], line["response"]) for line in read(client, done.error_file_id)]
    codes = [(name, one["status_code"], one["body"]["error"]["code"]) for name, one in told]  # type: ignore[index]
    assert codes == [("line-1", 400, "context_length_exceeded"), ("line-2", 404, "model_not_found")]


def test_an_engine_that_fails_for_a_while_costs_no_line(client: openai.OpenAI, front: Front) -> None:
    front.engines[0].once.extend([{"fail": "500"}, {"fail": "503"}, {"fail": "refuse"}, {"fail": "500"}])
    done = ended(client, order(client, lines_of([chat_body()] * 10)).id)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed) == ("completed", 10)
    assert "kimi_serve_batch_line_retries_total 0.0" not in front.http.get("/metrics").text


def test_an_engine_that_fails_for_good_is_asked_so_often_and_no_more(
    client_of: Open, start: Start, tmp_path: Path
) -> None:
    front = start(dials={"fail": "500"}, files={"folder": tmp_path / "files"}, batches={"retry_s": 0.01, "attempts": 3})
    client = client_of(front)
    done = ended(client, order(client, lines_of([chat_body()])).id)
    (line,) = read(client, done.error_file_id)
    assert (done.status, line["response"]["status_code"]) == ("completed", 500)  # type: ignore[index]


def test_a_cancelled_batch_keeps_what_it_has(client_of: Open, start: Start, tmp_path: Path) -> None:
    front = start(dials={"ttft_s": 0.05}, files={"folder": tmp_path / "files"}, batches={"concurrency": 2})
    client = client_of(front)
    batch = order(client, lines_of([chat_body()] * 400))
    eventually(lambda: client.batches.retrieve(batch.id).request_counts.completed > 3, 60)  # type: ignore[union-attr]
    assert client.batches.cancel(batch.id).status == "cancelling"
    with suppress(openai.ConflictError):  # a second time, which may come before the end or after it
        assert client.batches.cancel(batch.id).status == "cancelling"
    done = ended(client, batch.id)
    assert done.status == "cancelled"
    assert done.cancelling_at is not None
    assert done.cancelled_at is not None
    good, bad = read(client, done.output_file_id), read(client, done.error_file_id)
    assert len(good) > 3
    assert sorted(str(line["custom_id"]) for line in good + bad) == sorted(f"line-{number}" for number in range(400))
    assert {line["error"]["code"] for line in bad} == {"batch_cancelled"}  # type: ignore[index]
    with pytest.raises(openai.ConflictError) as refused:
        client.batches.cancel(batch.id)
    assert refused.value.code == "batch_has_ended"
    eventually(lambda: front.gateway.admission.snapshot().outstanding.requests == 0, 20)
    front.assert_idle()


def test_a_batch_whose_window_is_over_expires_with_what_it_has(client_of: Open, start: Start, tmp_path: Path) -> None:
    front = start(dials={"ttft_s": 0.2}, files={"folder": tmp_path / "files"}, batches={"concurrency": 1})
    client = client_of(front)
    done = ended(client, order(client, lines_of([chat_body()] * 300), completion_window="3s").id)
    assert (done.status, done.expired_at is not None) == ("expired", True)
    good, bad = read(client, done.output_file_id), read(client, done.error_file_id)
    assert len(good) + len(bad) == 300
    assert {(line["response"], line["error"]["code"]) for line in bad} == {(None, "batch_expired")}  # type: ignore[index]


def test_no_more_lines_are_asked_at_once_than_the_setting_says(client_of: Open, start: Start, tmp_path: Path) -> None:
    front = start(dials={"ttft_s": 0.1}, files={"folder": tmp_path / "files"}, batches={"concurrency": 3})
    client = client_of(front)
    batches = [order(client, lines_of([chat_body()] * 12)) for _ in range(2)]
    most = 0
    while not all(batch.completed_at for batch in (client.batches.retrieve(batch.id) for batch in batches)):
        most = max(most, front.engines[0].record.in_flight)
    assert 0 < most <= 3


def test_live_requests_go_before_a_batch(client_of: Open, start: Start, tmp_path: Path) -> None:
    """One slot, and a batch that fills the line: a live request waits for the line at the engine, not for the batch."""
    front = start(
        dials={"ttft_s": 0.1},
        files={"folder": tmp_path / "files"},
        admission={"requests": 1},
        batches={"concurrency": 8},
    )
    client = client_of(front)
    batch = order(client, lines_of([chat_body("batch")] * 60))
    eventually(lambda: front.gateway.admission.snapshot().waiting["low"] > 4, 60)
    before = front.engines[0].record.count
    assert front.chat("live", max_tokens=8).status_code == 200
    asked = [json.loads(request.body)["messages"][0]["content"] for request in front.engines[0].record.requests]
    assert asked.index("live") - before <= 2
    assert ended(client, batch.id).status == "completed"


def test_a_batch_is_its_keys_own_and_counts_against_its_limits(client_of: Open, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    mine, others = made(file, "mine", "--tokens-per-month", "1000000"), made(file, "others")
    front = start(files={"folder": tmp_path / "files"}, keys={"file": file})
    client, stranger = (client_of(front, key["authorization"].removeprefix("Bearer ")) for key in (mine, others))
    batch = order(client, lines_of([chat_body()] * 5))
    assert ended(client, batch.id).status == "completed"
    assert tenant_metric(front, "kimi_serve_completion_tokens_total", "mine") > 0
    assert tenant_metric(front, "kimi_serve_requests_total", "mine") >= 5
    assert [one.id for one in client.batches.list()] == [batch.id]
    assert list(stranger.batches.list()) == []
    for refused in (stranger.batches.retrieve, stranger.batches.cancel):
        with pytest.raises(openai.NotFoundError) as error:
            refused(batch.id)
        assert error.value.code == "batch_not_found"
    with pytest.raises(openai.NotFoundError, match="input_file_id"):
        stranger.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )


def test_a_limit_per_minute_is_waited_for(client_of: Open, start: Start, tmp_path: Path) -> None:
    """120 a minute, all of which are used up at once: the two lines beyond them come a second later."""
    key = made(tmp_path / "keys.json", "mine", "--requests-per-minute", "120")
    front = start(files={"folder": tmp_path / "files"}, keys={"file": tmp_path / "keys.json"})
    client = client_of(front, key["authorization"].removeprefix("Bearer "))
    done = ended(client, order(client, lines_of([chat_body()] * 122)).id)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed) == ("completed", 122)


def test_a_revoked_keys_lines_are_refused(client_of: Open, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = made(file, "mine")["authorization"].removeprefix("Bearer ")
    front = start(
        dials={"ttft_s": 0.3}, files={"folder": tmp_path / "files"}, keys={"file": file}, batches={"concurrency": 1}
    )
    client = client_of(front, key)
    batch = order(client, lines_of([chat_body()] * 100))
    eventually(lambda: front.engines[0].record.count > 1, 60)
    keys(file, "revoke", key.split("_")[1])
    other = client_of(front, made(file, "mine")["authorization"].removeprefix("Bearer "))
    eventually(lambda: front.http.get("/v1/files", headers={"authorization": f"Bearer {key}"}).status_code == 401, 30)
    done = ended(other, batch.id)
    bad = read(other, done.error_file_id)
    assert {line["response"]["status_code"] for line in bad} == {401}  # type: ignore[index]
    assert len(bad) + len(read(other, done.output_file_id)) == 100


def test_the_input_may_be_deleted_while_the_batch_runs(client_of: Open, start: Start, tmp_path: Path) -> None:
    front = start(dials={"ttft_s": 0.1}, files={"folder": tmp_path / "files"}, batches={"concurrency": 2})
    client = client_of(front)
    batch = order(client, lines_of([chat_body()] * 30))
    client.files.delete(batch.input_file_id)
    assert ended(client, batch.id).status == "completed"
    blobs = tmp_path / "files" / "blobs"
    eventually(lambda: len(list(blobs.glob("??/*"))) == 1, 20)  # the output's


WRONG: dict[str, tuple[Json, str]] = {
    "another endpoint": ({"endpoint": "/v1/embeddings"}, "endpoint"),
    "no endpoint": ({"endpoint": None}, "endpoint"),
    "a long window": ({"completion_window": "9000h"}, "completion_window"),
    "a strange window": ({"completion_window": "soon"}, "completion_window"),
    "no window": ({"completion_window": "0h"}, "completion_window"),
    "metadata": ({"metadata": {"a": 1}}, "metadata"),
    "much metadata": ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
    "another field": ({"priority": "high"}, "priority"),
    "an anchor": ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
    "seconds": ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
}


@pytest.mark.parametrize(("changes", "param"), WRONG.values(), ids=WRONG)
def test_a_wrong_order_is_refused_by_its_field(front: Front, changes: Json, param: str) -> None:
    asked = {"input_file_id": "file-0", "endpoint": "/v1/chat/completions", "completion_window": "24h", **changes}
    answer = front.http.post("/v1/batches", json=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_the_input_has_to_be_there_and_meant_for_it(client: openai.OpenAI) -> None:
    file = client.files.create(file=("x", b"{}"), purpose="user_data")
    order_of = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with pytest.raises(openai.BadRequestError, match="purpose is 'user_data'"):
        client.batches.create(input_file_id=file.id, **order_of)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError, match="input_file_id: there is no file"):
        client.batches.create(input_file_id="file-0", **order_of)  # type: ignore[arg-type]


def test_open_batches_are_limited_and_listed_in_pages(client_of: Open, start: Start, tmp_path: Path) -> None:
    front = start(
        dials={"fail": "hang_before_headers"}, files={"folder": tmp_path / "files"}, batches={"per_tenant": 3}
    )
    client = client_of(front)
    ids = [order(client, lines_of([chat_body()])).id for _ in range(3)]
    with pytest.raises(openai.RateLimitError) as refused:
        order(client, lines_of([chat_body()]))
    assert refused.value.code == "too_many_batches"
    assert [batch.id for batch in client.batches.list(limit=2)] == ids[::-1]  # page by page
    for batch_id in ids:
        client.batches.cancel(batch_id)
    assert {ended(client, batch_id).status for batch_id in ids} == {"cancelled"}


def test_output_files_expire_when_they_were_asked_to(client: openai.OpenAI) -> None:
    batch = order(client, lines_of([chat_body()]), output_expires_after={"anchor": "created_at", "seconds": 7200})
    output = client.files.retrieve(ended(client, batch.id).output_file_id or "")
    assert output.expires_at == output.created_at + 7200
