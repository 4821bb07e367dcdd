"""What a client sends stays between it and the engine: no log, metric, span or error holds it, whatever happens.

Every request carries marks in its texts, pictures, URLs and keys. Errors name fields and may quote a short value where
a name was expected (a role, a model, a type); they quote no text and no picture.
"""

import base64
import io
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from starlette.responses import Response

from kimi_serve.gateway.app import create_app
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.logs import JsonLines
from kimi_serve.gateway.settings import read
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import in_thread
from tests.gateway.collector import Collector, collecting
from tests.gateway.conftest import MODEL, Front, wait_ready
from tests.gateway.test_gateway import png
from tests.gateway.test_tenants import made
from tests.waiting import eventually

MARK = "cAnArY"
RAW = f"{MARK} is not a picture".encode()
NO_PICTURE = "data:image/png;base64," + base64.b64encode(RAW).decode()
SECRETS = (MARK, base64.b64encode(RAW).decode()[:16], png().partition(",")[2][40:80])
LOST = f"http://127.0.0.1/{MARK}.png?token={MARK}"
WRONG_KEY = f"ksk_{MARK}AAAAAA_" + MARK * 7


def picture(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def source(url: str) -> dict[str, object]:
    if url.startswith("data:"):
        data = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
        return {"type": "image", "source": data}
    return {"type": "image", "source": {"type": "url", "url": url}}


def text(value: object, kind: str = "text") -> dict[str, object]:
    return {"type": kind, "text": value}


def user(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


TOOL = {"type": "function", "function": {"name": MARK, "description": MARK, "parameters": {"title": MARK}}}
CALL = {"id": MARK, "type": "function", "function": {"name": MARK, "arguments": json.dumps({MARK: MARK})}}
# Of every dialect: what makes a body of a text and a picture.
CHAT = {
    "good": {"messages": [{"role": "system", "content": MARK}, *user(text(MARK), picture(png()))], "tools": [TOOL]},
    "called": {"messages": [*user(text(MARK)), {"role": "assistant", "tool_calls": [CALL]}]},
    "no picture": {"messages": user(text(MARK), picture(NO_PICTURE))},
    "lost": {"messages": user(text(MARK), picture(LOST))},
    "no text": {"messages": user(text([MARK]))},
    "an object": {"messages": [{"role": "user", "content": {"text": MARK}}]},
    "no file": {"messages": user({"type": "file", "file": MARK})},
    "lost file": {"messages": user({"type": "file", "file": {"file_data": NO_PICTURE}})},
    "no url": {"messages": user({"type": "image_url", "image_url": {"url": [MARK]}})},
    "no message": {"messages": [MARK]},
    "no messages": {"messages": {"text": MARK}},
    "no tools": {"messages": user(text(MARK)), "tools": {"text": MARK}},
    "no tool": {"messages": user(text(MARK)), "tools": [{"type": "function", "function": {"description": MARK}}]},
    "too long": {"messages": user(text(MARK * 9000))},
    "too much": {"messages": user(text(MARK)), "max_tokens": 10**6},
    "owned": {"messages": user(text(MARK)), "cache_salt": MARK},
    "options": {"messages": user(text(MARK)), "chat_template_kwargs": {"tools": MARK}},
}
MESSAGES = {
    "good": {"system": MARK, "messages": user(text(MARK), source(png())), "max_tokens": 5},
    "no picture": {"messages": user(text(MARK), source(NO_PICTURE)), "max_tokens": 5},
    "lost": {"messages": user(text(MARK), source(LOST)), "max_tokens": 5},
    "no text": {"messages": user(text([MARK])), "max_tokens": 5},
    "an object": {"messages": [{"role": "user", "content": {"text": MARK}}], "max_tokens": 5},
    "no source": {"messages": user({"type": "image", "source": MARK}), "max_tokens": 5},
    "no document": {"messages": user({"type": "document", "source": MARK}), "max_tokens": 5},
    "no data": {"messages": user({"type": "image", "source": {"type": "base64", "data": [MARK]}}), "max_tokens": 5},
    "no system": {"messages": user(text(MARK)), "system": {"text": MARK}, "max_tokens": 5},
    "no input": {"messages": user({"type": "tool_use", "name": MARK, "input": MARK}), "max_tokens": 5},
    "too long": {"messages": user(text(MARK * 9000)), "max_tokens": 5},
}
RESPONSES = {
    "good": {
        "instructions": MARK,
        "input": user(text(MARK, "input_text"), {"type": "input_image", "image_url": png()}),
    },
    "no picture": {"input": user({"type": "input_image", "image_url": NO_PICTURE})},
    "lost": {"input": user({"type": "input_image", "image_url": LOST})},
    "no text": {"input": user(text([MARK], "input_text"))},
    "an object": {"input": {"text": MARK}},
    "no url": {"input": user({"type": "input_image", "image_url": {"url": MARK}})},
    "no output": {"input": [{"type": "function_call_output", "call_id": "a", "output": {"text": MARK}}]},
    "no arguments": {"input": [{"type": "function_call", "name": "f", "arguments": [MARK]}]},
    "encrypted": {"input": [{"type": "reasoning", "encrypted_content": MARK}]},
    "too long": {"input": MARK * 9000},
}
COMPLETIONS = {
    "good": {"prompt": MARK},
    "several": {"prompt": [MARK, MARK]},
    "no prompt": {"prompt": {"text": MARK}},
    "mixed": {"prompt": [MARK, 5]},
    "too long": {"prompt": MARK * 9000},
}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": MESSAGES,
    "/v1/responses": RESPONSES,
    "/v1/responses/input_tokens": RESPONSES,
    "/tokenize": {**CHAT, **COMPLETIONS},
}


@dataclass
class Watched:
    """A gateway, and all that others than its clients get to see of it."""

    front: Front
    collector: Collector
    log: io.StringIO
    key: dict[str, str]
    statuses: set[int] = field(default_factory=set)

    def post(self, path: str, **sent: object) -> None:
        headers = sent.pop("headers", self.key)
        with suppress(httpx.HTTPError):
            response = self.front.http.post(f"{path}?q={MARK}", headers=headers, **sent)  # type: ignore[arg-type]
            self.statuses.add(response.status_code)
            if response.status_code >= 400 or '"error"' in response.text:
                self.assert_silent(response.text, "an error")

    def assert_silent(self, told: str, what: str) -> None:
        for secret in (*SECRETS, self.key["authorization"].removeprefix("Bearer ")):
            at = told.find(secret)
            assert at < 0, f"{what} holds {secret}: ...{told[max(0, at - 200) : at + 100]}"

    def assert_all_silent(self) -> None:
        self.assert_silent(self.front.http.get("/metrics").text, "a metric")
        self.assert_silent(self.log.getvalue(), "the log")
        self.assert_silent(self.collector.raw.decode("latin-1"), "a span")

    def line(self) -> dict[str, object]:
        """The one of the only request, which is written when the client has all of its answer."""
        eventually(lambda: len(self.lines("answered")) > 0, 20)
        (line,) = self.lines("answered")
        return line

    def lines(self, event: str) -> list[dict[str, object]]:
        return [line for line in map(json.loads, self.log.getvalue().splitlines()) if line["event"] == event]


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """All that any logger writes, in the gateway's own form; but for this process' clients."""
    stored = io.StringIO()
    handler = logging.StreamHandler(stored)
    handler.setFormatter(JsonLines())
    handler.addFilter(lambda record: not record.name.startswith(("http", "openai", "anthropic")))
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield stored
    finally:
        root.removeHandler(handler)
        root.setLevel(before)


async def broken() -> Response:
    nothing: dict[str, Response] = {}
    try:
        return nothing[MARK]
    except KeyError as error:
        raise RuntimeError(f"what was sent is {MARK}") from error


class Watch:
    def __init__(self, stack: ExitStack, checkpoint: Path, file: Path) -> None:
        self._stack, self._checkpoint, self._file = stack, checkpoint, file

    def __call__(self, dials: dict[str, object] | None = None, **sections: object) -> Watched:
        enter, opened = self._stack.enter_context, list[Gateway]()
        log = enter(logged())
        collector, url = enter(collecting())
        engine = FakeEngine(Dials(max_model_len=8192).turned(dials or {}))
        replicas = {"urls": [enter(in_thread(engine)).url], "check_s": 0.2}
        tracing = {"endpoint": url, "interval_s": 0.05}
        keys = {"file": str(self._file)}
        settings = read(None, checkpoint=self._checkpoint, replicas=replicas, tracing=tracing, keys=keys, **sections)
        app = create_app(settings, opened.append)
        app.add_api_route("/broken", broken, methods=["POST"])
        front = Front(enter(in_thread(app)).url, opened[0], [engine])
        enter(front.http)
        wait_ready(front)
        return Watched(front, collector, log, made(self._file, "acme"))


@pytest.fixture
def watch(checkpoint: Path, tmp_path: Path) -> Iterator[Watch]:
    with ExitStack() as stack:
        yield Watch(stack, checkpoint, tmp_path / "keys.json")


def test_nothing_of_a_request_is_told_whatever_is_wrong_with_it(watch: Watch) -> None:
    seen = watch()
    for path, bodies in BODIES.items():
        for body in bodies.values():
            seen.post(path, json={"model": MODEL, **body})
    assert seen.statuses == {200, 400}
    sent = sum(len(bodies) for bodies in BODIES.values())
    seen.collector.wait(lambda spans: len([span for span in spans if span.kind == "server"]) == sent)
    seen.assert_all_silent()


def test_nothing_of_a_request_is_told_where_it_is_no_request(watch: Watch) -> None:
    seen = watch(body={"max_bytes": 50_000})
    for path in (*BODIES, "/nothing", "/broken"):
        seen.post(path, content=b'{"messages": "' + MARK.encode())
        seen.post(path, content=MARK.encode() * 10_000)
        seen.post(path, json={"model": MODEL, **CHAT["good"]}, headers={"authorization": f"Bearer {WRONG_KEY}"})
        seen.post(path, json={"model": MODEL, **CHAT["good"]}, headers={"x-api-key": WRONG_KEY})
        seen.post(path, json={"model": MODEL, **CHAT["good"]}, headers={"authorization": f"Basic {MARK}"})
    assert seen.statuses == {400, 401, 404, 413, 500}
    seen.assert_all_silent()


@pytest.mark.parametrize("fail", ["refuse", "500", "503", "hang_before_headers", "hang_mid_stream", "die_mid_stream"])
def test_nothing_of_a_request_is_told_where_the_engine_fails(watch: Watch, fail: str) -> None:
    seen = watch(
        {"fail": fail, "after_tokens": 2},
        upstream={"first_byte_s": 0.3, "total_s": 0.5, "between_frames_s": 0.3},
        admission={"deadline_s": 0.3},
    )
    for path, bodies in BODIES.items():
        seen.post(path, json={"model": MODEL, **bodies["good"]})
        seen.post(path, json={"model": MODEL, **bodies["good"], "stream": True})
    seen.assert_all_silent()


def test_a_fault_is_logged_by_type_and_place_and_answered_with_its_id(watch: Watch) -> None:
    seen = watch()
    answered = seen.front.http.post("/broken")
    assert answered.status_code == 500
    assert answered.json()["error"]["code"] == "internal_error"
    fault = seen.lines("a fault of the gateway")[0]
    assert fault["request_id"] == answered.headers["x-request-id"]
    causes = fault["exception"]
    assert isinstance(causes, list)
    assert [cause["type"] for cause in causes] == ["RuntimeError", "KeyError"]
    assert "test_privacy.py" in causes[0]["at"][-1]
    assert seen.line()["reason"] == "internal_error"
    assert 'route="/broken",status="500"' in seen.front.http.get("/metrics").text
    seen.assert_all_silent()


def test_a_request_is_one_line_that_says_how_it_went(watch: Watch) -> None:
    seen = watch({"prompt_tokens": 12, "tokens": 3})
    good = {"model": MODEL, **CHAT["good"], "stream": True, "stream_options": {"include_usage": True}}
    answered = seen.front.http.post("/v1/chat/completions", json=good, headers={**seen.key, "x-request-id": "mine"})
    assert answered.status_code == 200
    line = seen.line()
    tokens = int(answered.headers["x-kimi-serve-prompt-tokens"])
    expected = {
        "request_id": "mine",
        "tenant": "acme",
        "model": MODEL,
        "route": "/v1/chat/completions",
        "method": "POST",
        "status": 200,
        "stream": True,
        "images": 1,
        "image_tokens": 6,
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "replica": seen.front.gateway.fleet.snapshot()[0].url,
        "level": "info",
        "logger": "kimi_serve.access",
    }
    assert {name: line.get(name) for name in expected} == {**expected, "prompt_tokens": tokens}
    spent = {name: line[name] for name in ("body_s", "media_s", "queue_s", "upstream_s", "ttft_s", "seconds")}
    assert all(isinstance(value, float) and value >= 0 for value in spent.values()), spent
    assert "reason" not in line
    (server,) = [s for s in seen.collector.wait(lambda s: any(x.kind == "server" for x in s)) if s.kind == "server"]
    assert line["trace_id"] == server.trace


def test_a_refused_request_is_one_line_with_its_reason(watch: Watch) -> None:
    seen = watch()
    seen.post("/v1/chat/completions", json={"model": MODEL, **CHAT["too much"]})
    line = seen.line()
    assert (line["status"], line["reason"], line["tenant"]) == (400, "context_length_exceeded", "acme")
    assert isinstance(line["prompt_tokens"], int)


def test_an_engines_own_refusal_is_told_from_the_gateways(watch: Watch) -> None:
    seen = watch({"fail": "500"})
    seen.post("/v1/chat/completions", json={"model": MODEL, **CHAT["good"]})
    line = seen.line()
    assert (line["status"], line["reason"]) == (500, "engine_refused")
