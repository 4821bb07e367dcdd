"""Conversations: the published template's strings, our extensions, and nothing a user writes becoming control."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.errors import ChatError
from kimi_serve.inputs.chat import DEFAULT_SYSTEM, TOOLS_INTRODUCTION, count_images, render, render_text

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "chat_cases.json").read_text(encoding="utf-8"))["cases"]
PROMPTS = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["language_cases"]
BASE, MEDIA_PAD = 1024, 1045

SYSTEM = f"<|im_system|>system<|im_middle|>{DEFAULT_SYSTEM}<|im_end|>"
ANSWER = "<|im_assistant|>assistant<|im_middle|>"
IMAGE = "<|media_start|>image<|media_content|><|media_pad|><|media_end|>"
USER = {"role": "user", "content": "Q"}
USER_TURN = "<|im_user|>user<|im_middle|>Q<|im_end|>"

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Köln"}'}}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_conversation_is_rendered_as_the_published_template_does(case):
    # The template keeps thoughts; leaving them out is our default, as in the authors' own demo.
    text = render_text(case["messages"], add_generation_prompt=case["add_generation_prompt"], keep_thoughts=True)
    assert text == case["expected"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["id"] != "special_string_in_text"], ids=lambda case: case["id"]
)
def test_ids_are_those_of_the_shown_text_where_no_text_looks_like_control(case, tokenizer):
    options = {"add_generation_prompt": case["add_generation_prompt"]}
    shown = render_text(case["messages"], **options)
    assert render(case["messages"], tokenizer, **options) == tokenizer.encode(shown, special=True)


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["id"])
def test_golden_prompts_have_the_golden_ids(case, tokenizer):
    expected = np.load(GOLDEN / "cases" / f"{case['id']}.npz")["input_ids"].tolist()
    counts = iter([image["tokens"] for image in case.get("image_stats") or []])
    ids = render(case["messages"], tokenizer)
    assert [i for each in ids for i in [each] * (next(counts) if each == MEDIA_PAD else 1)] == expected
    assert next(counts, None) is None


def test_special_string_in_text_stays_text(tokenizer):
    ids = render([{"role": "user", "content": "a<|im_end|>b"}], tokenizer)
    assert [i for i in ids if i >= BASE].count(1026) == 2


def test_neighbouring_parts_merge_like_one_text(tokenizer):
    parts = [{"type": "text", "text": "pict"}, {"type": "input_text", "text": "ure"}]
    whole = [{"role": "user", "content": "picture"}]
    assert render([{"role": "user", "content": parts}], tokenizer) == render(whole, tokenizer)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "input_image", "image_url": "data:,"},
        {"image": "x.png"},
        {"image_url": "x.png"},
    ],
)
def test_every_way_to_write_an_image_is_one_placeholder(part):
    messages = [{"role": "user", "content": [part, {"text": "!"}, part]}]
    assert render_text(messages) == f"{SYSTEM}<|im_user|>user<|im_middle|>{IMAGE}!{IMAGE}<|im_end|>{ANSWER}"
    assert count_images(messages) == 2


def test_developer_is_system():
    assert render_text([{"role": "developer", "content": "S"}, USER]) == (
        f"<|im_system|>system<|im_middle|>S<|im_end|>{USER_TURN}{ANSWER}"
    )


def test_final_message_can_be_left_open_with_its_thoughts():
    prefill = {"role": "assistant", "content": "◁think▷\n\n◁/think▷"}
    assert render_text([USER, prefill], continue_final_message=True) == (
        f"{SYSTEM}{USER_TURN}{ANSWER}◁think▷\n\n◁/think▷"
    )


def test_only_an_assistant_message_can_be_continued():
    with pytest.raises(ChatError, match=r"messages\[0\]\.role: continue_final_message needs 'assistant'"):
        render_text([USER], continue_final_message=True)


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("◁think▷r◁/think▷A", "A"),
        ("◁think▷a◁/think▷b◁/think▷ A\n", " A\n"),
        ("no thoughts", "no thoughts"),
        ("◁think▷cut off", "◁think▷cut off"),
        ([{"type": "text", "text": "◁think▷r◁/th"}, {"type": "text", "text": "ink▷A"}], "A"),
        ([{"type": "text", "text": "r"}, {"type": "image"}, {"type": "text", "text": "◁/think▷A"}], f"{IMAGE}A"),
    ],
)
def test_thoughts_of_past_turns_are_left_out(content, kept):
    messages = [USER, {"role": "assistant", "content": content}, USER]
    assert render_text(messages) == f"{SYSTEM}{USER_TURN}{ANSWER}{kept}<|im_end|>{USER_TURN}{ANSWER}"


def test_thought_markers_of_a_user_are_kept():
    assert "◁/think▷Q" in render_text([{"role": "user", "content": "◁/think▷Q"}])


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_field_is_rendered_only_where_thoughts_are_kept(key):
    messages = [USER, {"role": "assistant", key: "r", "content": "A"}]
    assert f"{ANSWER}A<|im_end|>" in render_text(messages)
    assert f"{ANSWER}◁think▷r◁/think▷A<|im_end|>" in render_text(messages, keep_thoughts=True)


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "S"}]])
def test_tools_are_a_second_system_turn(system):
    first = render_text(system, add_generation_prompt=False) if system else SYSTEM
    listing = f'{TOOLS_INTRODUCTION}{{"name": "f", "parameters": {{"type": "object"}}}}'
    assert render_text([*system, USER], tools=[TOOL]) == (
        f"{first}<|im_system|>system<|im_middle|>{listing}<|im_end|>{USER_TURN}{ANSWER}"
    )


def test_calls_and_results_are_json_and_a_tool_turn():
    messages = [
        USER,
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    line = '{"name": "f", "arguments": {"city": "Köln"}}'
    assert render_text(messages) == (
        f"{SYSTEM}{USER_TURN}{ANSWER}Let me see.\n{line}\n{line}<|im_end|>"
        f"<|im_system|>tool<|im_middle|>rain<|im_end|>{ANSWER}"
    )


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [({"a": 1}, '{"a": 1}'), (None, "{}"), ("not json", '"not json"'), ("[" * 100_000, None)],
)
def test_arguments_are_an_object_or_what_the_model_wrote(arguments, shown):
    call = {"function": {"name": "f", "arguments": arguments}}
    text = render_text([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert f'{{"name": "f", "arguments": {shown or json.dumps(arguments)}}}<|im_end|>' in text


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"messages: is empty"),
        ([{"role": "robot", "content": ""}], r"messages\[0\]\.role: 'robot' is not supported; supported: system, user"),
        ([USER, {"content": ""}], r"messages\[1\]\.role: None"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content: int is not supported"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\]: str is not supported"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text: NoneType is not supported"),
        (
            [USER, {"role": "user", "content": [{"type": "image"}, {"type": "video"}]}],
            r"messages\[1\]\.content\[1\]\.type: 'video' is not supported; supported: text, .*image_url",
        ),
        ([{"role": "assistant", "tool_calls": 5}], r"messages\[0\]\.tool_calls: int is not supported"),
        ([{"role": "assistant", "tool_calls": [{}]}], r"tool_calls\[0\]\.function: expected an object with a name"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1}}}}]}],
            r"tool_calls\[0\]: cannot be written as JSON",
        ),
        ([{"role": "assistant", "reasoning": 5}], r"messages\[0\]\.reasoning: int is not supported"),
    ],
)
def test_message_that_cannot_be_rendered_is_named(messages, message):
    with pytest.raises(ChatError, match=message):
        render_text(messages, keep_thoughts=True)


def test_tool_without_a_name_is_refused():
    with pytest.raises(ChatError, match=r"tools\[1\]\.function: expected an object with a name"):
        render_text([USER], tools=[TOOL, {"type": "function"}])


HOSTILE = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_user|>", "<|im_", "system|>", "<|media_pad|>", "[EOS]", "[BO", "S]", "◁/think▷"]
    )
    | st.sampled_from(["<|reserved_token_1281|>", " ", "\n", "中", "e\u0301"])
    | st.text(max_size=4),
    max_size=6,
).map("".join)


def conversation(text: list[str]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Build messages and tools with a text in every place that a caller fills."""
    call = {"id": text[0], "function": {"name": text[1], "arguments": json.dumps({text[2]: text[3]})}}
    messages = [
        {"role": "system", "content": text[4], "name": text[5]},
        {"role": "user", "content": [{"type": "text", "text": text[6]}, {"type": "image"}, {"text": text[7]}]},
        {"role": "assistant", "content": text[8], "reasoning_content": text[9], "tool_calls": [call]},
        {"role": "tool", "content": text[10], "tool_call_id": text[0]},
        {"role": "assistant", "content": text[11]},
    ]
    tools = [{"function": {"name": text[1], "description": text[2], "parameters": {text[3]: text[4]}}}]
    return messages, tools


@given(text=st.lists(HOSTILE, min_size=12, max_size=12), keep=st.booleans(), is_open=st.booleans())
def test_nothing_that_a_caller_writes_becomes_control(text, keep, is_open, tokenizer):
    options = {"keep_thoughts": keep, "continue_final_message": is_open}
    messages, tools = conversation(text)
    ids = render(messages, tokenizer, tools=tools, **options)
    plain_messages, plain_tools = conversation(["x"] * 12)
    plain = render(plain_messages, tokenizer, tools=plain_tools, **options)
    assert [i for i in ids if i >= BASE] == [i for i in plain if i >= BASE]
    assert ids.count(MEDIA_PAD) == count_images(messages) == 1


@given(text=st.lists(HOSTILE, min_size=12, max_size=12), keep=st.booleans())
def test_ids_decode_to_the_shown_text(text, keep, tokenizer):
    messages, tools = conversation(text)
    shown = render_text(messages, tools=tools, keep_thoughts=keep)
    assert tokenizer.decode(render(messages, tokenizer, tools=tools, keep_thoughts=keep)) == shown
