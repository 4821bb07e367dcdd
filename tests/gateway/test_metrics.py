"""What /metrics says after requests that went well, were refused, or were left, over real sockets."""

import re
from contextlib import suppress

import httpx
from prometheus_client.parser import text_string_to_metric_families

from kimi_serve import __version__
from kimi_serve.gateway.counting import Histogram
from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.streaming import GAP_BOUNDS_S
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.test_gateway import image, png
from tests.waiting import eventually

NOT_BASE = ("_ms", "_us", "_ns", "_milliseconds", "_minutes", "_kb", "_mb", "_kib", "_mib", "_percent", "_per_second")
RESERVED = ("_total", "_count", "_sum", "_bucket", "_created")


def sample(front: Front, name: str, **labels: str) -> float:
    """The sum over all series that have these labels; 0 where there is none yet."""
    text = front.http.get("/metrics").text
    found = [one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]
    return sum(one.value for one in found if labels.items() <= one.labels.items())


def test_names_follow_prometheus_conventions() -> None:
    for family in Metrics().registry.collect():
        assert re.fullmatch(r"(kimi_serve|process)_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation
        assert not family.name.endswith((*NOT_BASE, *RESERVED)), family.name
        if family.type == "histogram" and "duration" in family.name:
            assert family.name.endswith("_seconds")
        if family.type == "counter":
            assert all(one.name.endswith(("_total", "_created")) for one in family.samples)


def test_a_request_with_a_picture_is_measured(start: Start) -> None:
    front = start(dials={"tokens": 4, "prompt_tokens": 5})
    answered = front.chat([image(png())], stream=True, max_tokens=50)
    tokens = int(answered.headers["x-kimi-serve-prompt-tokens"])
    eventually(lambda: sample(front, "kimi_serve_request_duration_seconds_count", route="/v1/chat/completions") == 1)
    assert sample(front, "kimi_serve_request_prompt_tokens_sum") == tokens
    assert sample(front, "kimi_serve_request_images_sum") == 1
    assert sample(front, "kimi_serve_request_body_bytes_sum") == len(answered.request.content)
    assert sample(front, "kimi_serve_images_measured_total", format="PNG") == 1
    assert sample(front, "kimi_serve_image_pixels_total") == 56 * 84
    assert sample(front, "kimi_serve_reserved_completion_tokens_total", tenant="anonymous") == 50
    assert sample(front, "kimi_serve_completion_tokens_total", tenant="anonymous") == 4
    assert sample(front, "kimi_serve_time_to_first_token_seconds_count") == 1
    assert sample(front, "kimi_serve_inter_token_seconds_count") == 3
    assert sample(front, "kimi_serve_body_duration_seconds_count") == 1


def test_a_count_that_is_not_the_engines_is_seen(start: Start) -> None:
    front = start(dials={"prompt_tokens": 5})
    answered = front.chat("hello")
    assert sample(front, "kimi_serve_miscounted_prompts_total") == 1
    off = int(answered.headers["x-kimi-serve-prompt-tokens"]) - 5
    assert sample(front, "kimi_serve_miscounted_tokens_total") == off > 0


def test_a_prompt_that_was_there_before_is_expected_in_the_engines_cache(start: Start) -> None:
    front = start()
    question = "x " * 500
    assert front.chat(question).status_code == 200
    assert sample(front, "kimi_serve_expected_cached_tokens_total") == 0
    assert front.chat(question).status_code == 200
    assert sample(front, "kimi_serve_expected_cached_tokens_total") > 0


def test_an_engine_is_measured_by_name(start: Start) -> None:
    front = start(engines=2, replicas={"retry_percent": 100})
    front.engines[0].dials = front.engines[0].dials.turned({"fail": "refuse"})
    assert [front.chat(f"question {k}").status_code for k in range(8)] == [200] * 8
    calls = {
        (replica.url, outcome): sample(front, "kimi_serve_replica_calls_total", replica=replica.url, outcome=outcome)
        for replica in front.gateway.fleet.snapshot()
        for outcome in ("answered", "failed")
    }
    retries = sample(front, "kimi_serve_retries_total")
    assert retries > 0
    assert sorted(calls.values()) == sorted([0, 0, retries, 8])
    for replica, _ in calls:
        assert sample(front, "kimi_serve_replica_ready", replica=replica) == 1
        assert sample(front, "kimi_serve_replica_breaker", replica=replica) == 1
    assert sample(front, "kimi_serve_capacity_requests") == 512


def test_a_picture_that_cannot_be_fetched_is_counted_by_code(start: Start) -> None:
    front = start()
    assert front.chat([image("http://127.0.0.1/x.png")]).status_code == 400
    assert sample(front, "kimi_serve_fetch_failures_total", code="media_url_forbidden") == 1
    assert sample(front, "kimi_serve_refusals_total", code="media_url_forbidden") == 1
    assert sample(front, "kimi_serve_fetch_duration_seconds_count") == 1


def test_a_client_that_leaves_is_counted_by_stage_and_its_cancel_is_timed(start: Start) -> None:
    front = start(dials={"ttft_s": 20.0})
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
    for stream in (False, True):
        with suppress(httpx.TimeoutException):
            front.http.post("/v1/chat/completions", json=body | {"stream": stream}, timeout=0.5)
    eventually(lambda: sample(front, "kimi_serve_clients_left_total", stage="upstream") == 2, 20)
    assert sample(front, "kimi_serve_cancel_duration_seconds_count") == 2
    front.assert_idle()


def test_a_scrape_says_what_runs() -> None:
    (info,) = [family for family in Metrics().registry.collect() if family.name == "kimi_serve_build_info"]
    assert info.samples[0].labels["version"] == __version__
    assert info.samples[0].value == 1


def test_gaps_are_a_histogram_whose_buckets_add_up() -> None:
    gaps = Histogram("kimi_serve_x_seconds", "Between.", (), GAP_BOUNDS_S, Metrics().registry)
    gaps.add([1] * (len(GAP_BOUNDS_S) + 1), 20.0)
    gaps.add([2] + [0] * len(GAP_BOUNDS_S), 0.001)
    (family,) = gaps.collect()
    buckets = [one.value for one in family.samples if one.name.endswith("_bucket")]
    assert buckets == list(range(3, 3 + len(GAP_BOUNDS_S) + 1))
    told = {one.name.rpartition("_")[2]: one.value for one in family.samples}
    assert (told["count"], told["sum"]) == (3 + len(GAP_BOUNDS_S), 20.001)
