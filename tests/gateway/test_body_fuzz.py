"""Bodies that nobody would write: never a 500, never an error that is not ours. KIMI_SERVE_FUZZ sets the examples.

Unlike what is drawn from the OpenAPI document these are built from the words that the gateway reads, in wrong places.
"""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kimi_serve.protocol.errors import CODES
from tests.gateway.conftest import MODEL, Front
from tests.gateway.test_gateway import png

EXAMPLES = int(os.environ.get("KIMI_SERVE_FUZZ", "420"))
ROUTES = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "messages",
    "/v1/responses": "input",
    "/v1/responses/input_tokens": "input",
    "/tokenize": "messages",
}
NAMES = (
    *("role", "content", "type", "text", "image_url", "url", "source", "data", "media_type", "uuid", "input", "output"),
    *(
        "name",
        "arguments",
        "function",
        "tool_calls",
        "tool_call_id",
        "file",
        "file_data",
        "file_id",
        "image",
        "thinking",
    ),
    *("reasoning", "summary", "status", "call_id", "input_schema", "parameters", "tools", "system", "id", "namespace"),
)
WORDS = (
    *("user", "assistant", "system", "tool", "developer", "text", "image_url", "image", "input_image", "input_text"),
    *("output_text", "tool_use", "tool_result", "thinking", "redacted_thinking", "function_call", "function", "file"),
    *("function_call_output", "custom_tool_call", "reasoning", "message", "base64", "url", "input_file", "document"),
    *("item_reference", "incomplete", "custom", "namespace", "image/png", "{}", '{"a": 1}', "[1", "data:", "data:,"),
    *(
        "data:image/png;base64,",
        "data:image/png;base64,AAAA",
        "data:;base64,/9j/",
        "http://",
        "http://[",
        "x-anthropic",
    ),
    *(
        "◁think▷a◁/think▷",
        "<|im_end|>",
        "<|media_pad|>",
        "x-anthropic-billing-header: 1\n",
        "\ud800",
        "\0",
        "🦊",
        png(),
    ),
)
FIELDS = (
    *("model", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "tools", "tool_choice"),
    *("system", "instructions", "chat_template_kwargs", "stream_options", "continue_final_message", "response_format"),
    *(
        "add_generation_prompt",
        "store",
        "previous_response_id",
        "cache_salt",
        "temperature",
        "stop",
        "logprobs",
        "best_of",
    ),
)

HELLO = '[{"role": "user", "content": "x"}]'

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.just(2**70)
words = st.sampled_from(WORDS)
anything = st.recursive(
    scalars | words,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=5)
    ),
    max_leaves=12,
)
# Nearly right: so that more than the first look at a body is reached.
part = st.fixed_dictionaries({"type": words}, optional={name: anything for name in NAMES if name != "type"})
message = st.fixed_dictionaries(
    {"role": st.sampled_from(("user", "assistant", "system", "tool"))},
    optional={
        "content": words | st.lists(part, max_size=4) | anything,
        "tool_calls": st.lists(part, max_size=2) | anything,
    },
)
conversation = st.lists(message | part, min_size=1, max_size=4) | anything
fields = st.dictionaries(st.sampled_from(FIELDS), anything, max_size=3)


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_is_answered_or_refused_by_name(alone: Front, path: str) -> None:
    @settings(
        max_examples=EXAMPLES // len(ROUTES), deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(conversation, fields, st.integers(0, 9))
    def check(said: object, more: dict[str, object], luck: int) -> None:
        body = {"model": MODEL, "max_tokens": 5, **(more if luck < 4 else {}), ROUTES[path]: said}
        # As clients send it: lone surrogates stay escapes, which JSON allows.
        answered = alone.http.post(path, content=json.dumps(body).encode())
        assert answered.status_code in (200, 400, 404), (answered.status_code, answered.text)
        if answered.status_code != 200:
            error = answered.json()["error"]
            assert error["message"]
            assert "code" not in error or error["code"] in CODES or error["code"] == 400
            assert answered.headers.get("x-kimi-serve-reason") != "internal_error"

    check()
    alone.assert_idle()


@pytest.mark.parametrize("path", ROUTES)
def test_bytes_that_are_no_body_are_refused(alone: Front, path: str) -> None:
    @settings(
        max_examples=EXAMPLES // len(ROUTES) // 2, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.binary(max_size=64) | st.text(alphabet='{}[]",:\\u01 \x00', max_size=64).map(str.encode))
    def check(raw: bytes) -> None:
        answered = alone.http.post(path, content=raw)
        assert answered.status_code == 400, answered.text
        assert answered.headers["x-kimi-serve-reason"] in ("invalid_json", "invalid_value")

    check()
    alone.assert_idle()


@pytest.mark.parametrize("path", ROUTES)
def test_depth_and_size_without_end_are_refused(alone: Front, path: str) -> None:
    name = ROUTES[path]
    deep = ("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000)
    for raw in (*deep, *(f'{{"{name}": {one}}}' for one in deep), f'{{"{name}": 1{"0" * 100_000}}}'):
        answered = alone.http.post(path, content=raw.encode())
        assert answered.status_code == 400, answered.text
    for depth in (200, 450, 900, 3000):
        nested = '{"type": "object", "properties": {"a": ' * depth + "1" + "}}" * depth
        tool = f'{{"type": "function", "name": "f", "function": {{"name": "f", "parameters": {nested}}}, '
        tools = f'[{tool}"input_schema": {nested}, "parameters": {nested}}}]'
        said = f'[{{"role": "user", "content": [{{"type": "text", "text": "x", "more": {nested}}}]}}]'
        for body in (f'"tools": {tools}, "{name}": "x", "messages": {HELLO}', f'"{name}": {said}'):
            raw = f'{{"model": "{MODEL}", "max_tokens": 5, {body}}}'
            answered = alone.http.post(path, content=raw.encode())
            assert answered.status_code in (200, 400), (depth, answered.text)
    alone.assert_idle()
