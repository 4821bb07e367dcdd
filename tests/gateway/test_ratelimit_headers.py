"""What a client is told of its limits, and when to come back: on answers, on 429 and on 503, in its dialect's names."""

import threading
import time
from pathlib import Path

import httpx
import pytest

from kimi_serve.protocol.errors import CODES, ApiError
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.test_gateway import HELLO, error_of
from tests.gateway.test_tenants import made

OPENAI = {"x-ratelimit-limit-requests": "2", "x-ratelimit-limit-tokens": "100000"}
ANTHROPIC = {"anthropic-ratelimit-requests-limit": "2", "anthropic-ratelimit-tokens-limit": "100000"}
BODIES = {
    "/v1/chat/completions": {"model": MODEL, "messages": HELLO, "max_tokens": 10},
    "/v1/completions": {"model": MODEL, "prompt": "hello", "max_tokens": 10},
    "/v1/messages": {"model": MODEL, "messages": HELLO, "max_tokens": 10},
    "/v1/responses": {"model": MODEL, "input": "hello", "max_output_tokens": 10},
}


@pytest.mark.parametrize("code", [code for code in CODES if CODES[code].status in (429, 503)])
def test_every_429_and_503_names_its_reason_and_says_when_to_come_back_if_ever(code: str) -> None:
    headers = ApiError(code, "x").headers()
    assert headers["x-kimi-serve-reason"] == code
    assert "retry-after" in headers or (CODES[code].status == 429 and headers["x-should-retry"] == "false")
    assert ApiError(code, "x", retry_after=1.2).headers() == {"x-kimi-serve-reason": code, "retry-after": "2"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def header(file: Path) -> dict[str, str]:
    return made(file, "acme", "--requests-per-minute", "2", "--tokens-per-minute", "100000")


def left_of(response: httpx.Response) -> dict[str, str]:
    names = [name for name in response.headers if "ratelimit" in name]
    return {name: response.headers[name] for name in names}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", list(BODIES))
def test_every_route_says_what_is_left_on_answers_and_on_429(
    start: Start, file: Path, header: dict[str, str], path: str, stream: bool
) -> None:
    front = start(keys={"file": str(file)})
    expected = ANTHROPIC if path == "/v1/messages" else OPENAI
    remaining = "anthropic-ratelimit-requests-remaining" if path == "/v1/messages" else "x-ratelimit-remaining-requests"
    body = {**BODIES[path], "stream": stream}
    for left, status in (("1", 200), ("0", 200), ("0", 429)):
        response = front.http.post(path, json=body, headers=header)
        assert response.status_code == status, response.text
        told = left_of(response)
        assert len(told) == 6
        assert expected.items() <= told.items()
        assert told[remaining] == left
    assert response.headers["x-kimi-serve-reason"] == "rate_limited"
    assert 1 <= int(response.headers["retry-after"]) <= 31
    front.assert_idle()


def test_a_request_that_can_never_fit_tells_clients_not_to_retry(start: Start, file: Path) -> None:
    header = made(file, "acme", "--tokens-per-minute", "50")
    front = start(keys={"file": str(file)})
    refused = front.chat("x", headers=header, max_tokens=1000)
    error_of(refused, 429, "rate_limited")
    assert "retry-after" not in refused.headers
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["x-ratelimit-remaining-tokens"] == "50"


def test_a_full_line_says_when_to_come_back_and_what_is_left(start: Start, file: Path) -> None:
    """The request was charged before it met the line, and its charge was given back."""
    header = made(file, "acme", "--requests-per-minute", "100")
    admission = {"requests": 1, "waiting": 0}
    front = start(keys={"file": str(file)}, admission=admission, dials={"ttft_s": 30.0})
    url = f"{front.url}/v1/chat/completions"
    body = {**BODIES["/v1/chat/completions"], "stream": True}
    with httpx.Client(trust_env=False, timeout=30) as other:
        request = other.build_request("POST", url, json=body, headers=header)
        busy(front, other, request)
        refused = front.chat("x", headers=header)
        error_of(refused, 503, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-ratelimit-limit-requests"] == "100"


def busy(front: Front, other: httpx.Client, request: httpx.Request) -> None:
    """One request at the engine, whose client gives up on it soon after."""

    def send() -> None:
        try:
            other.send(request)
        except httpx.HTTPError:
            return

    threading.Thread(target=send, daemon=True).start()
    deadline = time.monotonic() + 10
    while not front.gateway.admission.snapshot().outstanding.requests:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engines_own_503_says_when_to_come_back(start: Start, stream: bool) -> None:
    front = start(dials={"fail": "503"})
    refused = front.chat("x", stream=stream)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-kimi-serve-reason"] == "engine_busy"
    front.assert_idle()
