"""Spans over real sockets: what a collector gets of a request, what an engine hears of it, and what neither does."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes, http_attributes, server_attributes

from kimi_serve.gateway import tracing
from tests.gateway.collector import Collector, Span, collecting
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.test_gateway import image, png

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENTS = f"00-{TRACE}-{PARENT}-01"
# Named by the conventions in 2026-08, after the installed list of names.
NEW = {"gen_ai.usage.image.input_tokens", "gen_ai.usage.text.input_tokens"}


@pytest.fixture
def traced(start: Start) -> Iterator[tuple[Front, Collector]]:
    with collecting() as (collector, url):
        yield start(dials={"prompt_tokens": 16}, tracing={"endpoint": url, "interval_s": 0.05}), collector


def named(spans: list[Span], name: str) -> Span:
    found = [span for span in spans if span.name == name]
    assert len(found) == 1, [span.name for span in spans]
    return found[0]


def is_sampled(traceparent: str | None) -> bool:
    assert traceparent is not None
    return bool(int(traceparent.rpartition("-")[2], 16) & 1)


def is_whole(spans: list[Span]) -> bool:
    """The server's span ends last of a request."""
    return any(span.kind == "server" for span in spans)


def test_a_request_is_one_span_with_its_stages_below_it(traced: tuple[Front, Collector]) -> None:
    front, collector = traced
    asked = {"temperature": 0.5, "max_tokens": 20, "seed": 7, "n": 1, "stop": ["canary"], "user": "canary"}
    answered = front.chat([image(png()), {"type": "text", "text": "canary"}], **asked)
    assert answered.status_code == 200, answered.text
    spans = collector.wait(is_whole)
    server = named(spans, "POST /v1/chat/completions")
    assert {span.trace for span in spans} == {server.trace}
    below = {span.name: span for span in spans if span.parent == server.id}
    assert set(below) == {"body", "media", "queue", f"chat {MODEL}"}
    assert sum(span.seconds for span in below.values()) <= server.seconds
    assert (server.kind, below["queue"].kind, below[f"chat {MODEL}"].kind) == ("server", "internal", "client")
    assert server.attributes[http_attributes.HTTP_ROUTE] == "/v1/chat/completions"
    assert server.attributes[http_attributes.HTTP_RESPONSE_STATUS_CODE] == 200
    assert server.attributes["kimi_serve.request_id"] == answered.headers["x-request-id"]
    assert server.resource["service.name"] == "kimi-serve-gateway"
    assert b"canary" not in collector.raw
    assert collector.paths == {"/v1/traces"}


def test_the_engines_span_has_the_conventions_names(traced: tuple[Front, Collector]) -> None:
    front, collector = traced
    answered = front.chat([image(png())], temperature=0.5, max_tokens=20, seed=7, stream=True)
    call = named(collector.wait(is_whole), f"chat {MODEL}")
    tokens = int(answered.headers["x-kimi-serve-prompt-tokens"])
    told = dict(call.attributes)
    assert isinstance(first := told.pop(gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK), float)
    assert 0 < first <= 30
    host, _, port = front.gateway.fleet.snapshot()[0].url.removeprefix("http://").partition(":")
    assert told == {
        gen_ai.GEN_AI_OPERATION_NAME: "chat",
        gen_ai.GEN_AI_PROVIDER_NAME: "vllm",
        gen_ai.GEN_AI_REQUEST_MODEL: MODEL,
        gen_ai.GEN_AI_REQUEST_STREAM: True,
        gen_ai.GEN_AI_REQUEST_TEMPERATURE: 0.5,
        gen_ai.GEN_AI_REQUEST_MAX_TOKENS: 20,
        gen_ai.GEN_AI_REQUEST_SEED: 7,
        gen_ai.GEN_AI_OUTPUT_TYPE: "text",
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: tokens,
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: 16,
        gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: 0,
        gen_ai.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS: 0,
        "gen_ai.usage.image.input_tokens": 6,
        "gen_ai.usage.text.input_tokens": tokens - 6,
        server_attributes.SERVER_ADDRESS: host,
        server_attributes.SERVER_PORT: int(port),
    }


def test_every_name_is_one_of_the_conventions() -> None:
    known = {value for name, value in vars(gen_ai).items() if name.startswith("GEN_AI_") and isinstance(value, str)}
    source = "".join(
        (Path(tracing.__file__).parent / name).read_text("utf-8") for name in ("tracing.py", "journey.py", "forward.py")
    )
    used = {part.split('"')[0] for part in source.split('"') if part.startswith("gen_ai.")}
    assert used - known == NEW


def test_the_clients_trace_goes_on_to_the_engine(traced: tuple[Front, Collector]) -> None:
    front, collector = traced
    assert front.chat("hello", {"traceparent": CLIENTS, "tracestate": "vendor=1"}).status_code == 200
    spans = collector.wait(is_whole)
    server, call = named(spans, "POST /v1/chat/completions"), named(spans, f"chat {MODEL}")
    assert (server.trace, server.parent) == (TRACE, PARENT)
    heard = front.engines[0].record.requests[-1]
    assert heard.header("traceparent") == f"00-{TRACE}-{call.id}-01"
    assert heard.header("tracestate") == "vendor=1"


def test_what_is_no_traceparent_begins_a_trace_of_our_own(traced: tuple[Front, Collector]) -> None:
    front, collector = traced
    assert front.chat("hello", {"traceparent": "canary", "tracestate": "canary=1"}).status_code == 200
    call = named(collector.wait(is_whole), f"chat {MODEL}")
    heard = front.engines[0].record.requests[-1]
    assert str(heard.header("traceparent")).startswith(f"00-{call.trace}-{call.id}-")
    assert heard.header("tracestate") is None


def test_a_client_that_does_not_sample_is_not_sampled(traced: tuple[Front, Collector]) -> None:
    front, collector = traced
    assert front.chat("hello", {"traceparent": CLIENTS[:-2] + "00"}).status_code == 200
    assert str(front.engines[0].record.requests[-1].header("traceparent")).startswith(f"00-{TRACE}-")
    assert front.chat("hello").status_code == 200
    assert TRACE not in {span.trace for span in collector.wait(is_whole)}


def test_a_refusal_has_its_code_and_is_no_failure_of_the_server(traced: tuple[Front, Collector]) -> None:
    front, collector = traced
    assert front.chat("hello", max_tokens=0).status_code == 400
    server = named(collector.wait(is_whole), "POST /v1/chat/completions")
    assert not server.is_error
    assert server.attributes[error_attributes.ERROR_TYPE] == "invalid_value"


def test_an_attempt_that_failed_is_a_span_beside_the_one_that_did_not(start: Start) -> None:
    with collecting() as (collector, url):
        front = start(engines=2, tracing={"endpoint": url, "interval_s": 0.05}, replicas={"retry_percent": 100})
        front.engines[0].dials = front.engines[0].dials.turned({"fail": "refuse"})
        assert [front.chat(f"question {k}").status_code for k in range(8)] == [200] * 8
        spans = collector.wait(lambda spans: any(span.is_error and span.kind == "client" for span in spans))
        failed = next(span for span in spans if span.is_error and span.kind == "client")
        assert failed.attributes[error_attributes.ERROR_TYPE] == "upstream_error"


def test_a_stream_that_breaks_off_says_so_in_both_spans(start: Start) -> None:
    with collecting() as (collector, url):
        front = start(
            dials={"fail": "die_mid_stream", "after_tokens": 3}, tracing={"endpoint": url, "interval_s": 0.05}
        )
        assert front.chat("hello", stream=True).status_code == 200
        spans = collector.wait(is_whole)
        for span in (named(spans, "POST /v1/chat/completions"), named(spans, f"chat {MODEL}")):
            assert span.is_error
            assert span.attributes[error_attributes.ERROR_TYPE] == "upstream_error"


def test_no_trace_is_begun_here_where_the_ratio_is_zero(start: Start) -> None:
    with collecting() as (collector, url):
        front = start(tracing={"endpoint": url, "interval_s": 0.05, "sample_ratio": 0.0})
        assert front.chat("hello").status_code == 200
        assert not is_sampled(front.engines[0].record.requests[-1].header("traceparent"))
        assert front.chat("hello", {"traceparent": CLIENTS}).status_code == 200
        assert {span.trace for span in collector.wait(is_whole)} == {TRACE}


def test_a_collector_that_is_gone_costs_no_request_anything(start: Start) -> None:
    front = start(tracing={"endpoint": "http://127.0.0.1:9/v1/traces", "interval_s": 0.05, "timeout_s": 0.2})
    assert [front.chat("hello").status_code for _ in range(5)] == [200] * 5
    front.assert_idle()


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    code = """
import asyncio, sys
from kimi_serve.gateway.app import create_app
from kimi_serve.gateway.settings import Tracing
from kimi_serve.gateway import tracing
async def main():
    async with tracing.opened(Tracing()) as tracer:
        span = tracer.server("GET", {}, {}).child("body", "internal", {})
        print(span.headers(), span.trace_id)
asyncio.run(main())
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry", "requests", "google.protobuf"))))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "{} None\n[]\n"


def test_an_endpoint_without_the_packages_is_refused_at_the_start(tmp_path: Path, checkpoint: Path) -> None:
    """As without the extra: a finder in front of all others finds nothing of OpenTelemetry."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from kimi_serve.cli import main
sys.exit(main(sys.argv[1:]))
"""
    config = tmp_path / "gateway.toml"
    config.write_text('[tracing]\nendpoint = "http://collector:4318/v1/traces"\n')
    command = [sys.executable, "-c", code, "gateway", "--config", str(config), "--engine", "http://e"]
    told = subprocess.run(
        [*command, "--checkpoint", str(checkpoint)], capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode == 1
    assert "tracing.endpoint: is set, and" in told.stderr
    assert "expected kimi_serve[tracing]" in told.stderr
    assert "Traceback" not in told.stderr
