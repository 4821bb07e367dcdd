"""The clients that people use, against a gateway over real sockets: openai, anthropic, curl. The engine is a double."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.test_gateway import image, png
from tests.waiting import eventually

TEXT = " ha"
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture
def front(start: Start) -> Iterator[Front]:
    opened = start(dials={"tokens": 5, "text": TEXT})
    yield opened
    eventually(lambda: opened.gateway.admission.snapshot().outstanding.requests == 0)
    opened.assert_idle()


@pytest.fixture
def claude(front: Front) -> Iterator[anthropic.Anthropic]:
    with (
        anthropic.DefaultHttpxClient(trust_env=False) as http,
        anthropic.Anthropic(base_url=front.url, api_key="none", max_retries=0, http_client=http) as client,
    ):
        yield client


@pytest.fixture
def chatty(front: Front) -> Iterator[openai.OpenAI]:
    with (
        httpx.Client(trust_env=False) as http,
        openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0, http_client=http) as client,
    ):
        yield client


def source(url: str) -> dict[str, object]:
    data = {"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]}
    return {"type": "image", "source": data}


def test_anthropics_client_reads_an_answer_and_its_usage(claude: anthropic.Anthropic) -> None:
    content = [source(png()), {"type": "text", "text": "What is this?"}]
    asked = {"model": MODEL, "messages": [{"role": "user", "content": content}], "system": "Be brief.", "tools": [TOOL]}
    told = claude.messages.create(max_tokens=20, **asked)  # type: ignore[call-overload]
    assert [block.text for block in told.content] == [TEXT * 5]
    assert (told.stop_reason, told.usage.output_tokens) == ("end_turn", 5)
    counted = claude.messages.count_tokens(**asked)  # type: ignore[arg-type]
    assert counted.input_tokens > 6


def test_anthropics_client_reads_a_stream_to_its_end(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model=MODEL, max_tokens=20, messages=HELLO) as stream:  # type: ignore[arg-type]
        assert "".join(stream.text_stream) == TEXT * 5
        assert stream.get_final_message().usage.output_tokens == 5


def test_anthropics_client_gets_errors_of_its_own_kind(claude: anthropic.Anthropic, front: Front) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens 9000") as refused:
        claude.messages.create(model=MODEL, max_tokens=9000, messages=HELLO)  # type: ignore[arg-type]
    assert refused.value.body == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": refused.value.body["error"]["message"]},  # type: ignore[index]
    }
    with pytest.raises(anthropic.NotFoundError, match="is not served"):
        claude.messages.create(model="claude", max_tokens=9, messages=HELLO)  # type: ignore[arg-type]
    front.engines[0].dials = front.engines[0].dials.turned({"fail": "die_mid_stream", "after_tokens": 2})
    with (
        pytest.raises(anthropic.APIStatusError, match=r"ended its answer too early|broke off"),
        claude.messages.stream(model=MODEL, max_tokens=20, messages=HELLO) as stream,  # type: ignore[arg-type]
    ):
        stream.get_final_message()


def test_openais_client_reads_chats_with_pictures(chatty: openai.OpenAI) -> None:
    asked = [{"role": "user", "content": [image(png()), {"type": "text", "text": "What is this?"}]}]
    told = chatty.chat.completions.create(model=MODEL, messages=asked)  # type: ignore[call-overload]
    assert told.choices[0].message.content == TEXT * 5
    assert told.usage.completion_tokens == 5
    options = {"stream": True, "stream_options": {"include_usage": True}}
    stream = list(chatty.chat.completions.create(model=MODEL, messages=asked, **options))  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == TEXT * 5
    assert stream[-1].usage.completion_tokens == 5


def test_openais_client_reads_completions_and_responses(chatty: openai.OpenAI) -> None:
    assert chatty.completions.create(model=MODEL, prompt="Once").choices[0].text == TEXT * 5
    pieces = chatty.completions.create(model=MODEL, prompt="Once", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == TEXT * 5
    assert chatty.responses.create(model=MODEL, input="Hello").output_text == TEXT * 5
    events = list(chatty.responses.create(model=MODEL, input="Hello", stream=True))
    assert events[-1].type == "response.completed"
    assert chatty.responses.input_tokens.count(model=MODEL, input="Hello").input_tokens > 0


def test_openais_client_gets_errors_of_its_own_kind(chatty: openai.OpenAI, front: Front) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chatty.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=9000)  # type: ignore[call-overload]
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "max_tokens")
    front.engines[0].dials = front.engines[0].dials.turned({"fail": "die_mid_stream", "after_tokens": 2})
    with pytest.raises(openai.APIError, match=r"too early|broke off") as broken:
        list(chatty.chat.completions.create(model=MODEL, messages=HELLO, stream=True))  # type: ignore[call-overload]
    assert broken.value.code == "upstream_error"


def curl(front: Front, path: str, *options: str) -> str:
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "60", *options, front.url + path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sends_and_gets_as_the_readme_shows(front: Front) -> None:
    sent = ("--header", "content-type: application/json", "--data", json.dumps({"model": MODEL, "messages": HELLO}))
    told = json.loads(curl(front, "/v1/chat/completions", *sent))
    assert told["choices"][0]["message"]["content"] == TEXT * 5
    assert json.loads(curl(front, "/v1/models"))["data"][0]["id"] == MODEL
    # A body of more than 1 MiB: curl asks first whether it may send it, and waits for the answer.
    large = json.dumps({"model": MODEL, "messages": HELLO, "padding": "x" * 2**21})
    waits = ("--header", "content-type: application/json", "--expect100-timeout", "20", "--data", "@-")
    command = ["curl", "--silent", "--noproxy", "*", "--max-time", "60", *waits, front.url + "/v1/chat/completions"]
    answered = subprocess.run(command, input=large, capture_output=True, text=True, check=True).stdout
    assert json.loads(answered)["usage"]["completion_tokens"] == 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_shows_a_stream_and_an_error(front: Front) -> None:
    body = {"model": MODEL, "messages": HELLO, "stream": True}
    sent = ("--no-buffer", "--header", "content-type: application/json", "--data", json.dumps(body))
    stream = curl(front, "/v1/chat/completions", *sent)
    assert stream.endswith("data: [DONE]\n\n")
    assert stream.count("data: ") == 7
    refused = curl(front, "/v1/nothing", "--include", "--data", "{}")
    assert refused.startswith("HTTP/1.1 404")
    assert '"code":"not_found"' in refused
