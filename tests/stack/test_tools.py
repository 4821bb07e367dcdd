"""Tool calls through the OpenAI client: forced ones by grammar, free ones as the lines of JSON that prompts ask for."""

import json

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.stack.served import NAME, Server

ASK = [{"role": "user", "content": "weather?"}]
CITY = {"type": "string", "enum": ["Rome", "Köln"]}
PARAMETERS = {"type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
CALL = '{"name": "get_weather", "arguments": {"city": "Köln"}}'
OTHER = '{"name": "get_weathers", "arguments": {"city": "Köln"}}'
SAMPLED = {"model": NAME, "messages": ASK, "tools": TOOLS, "temperature": 1, "seed": 1, "max_tokens": 200}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("choice", [NAMED, "required"], ids=["named", "required"])
def test_a_forced_call_names_the_function_and_fits_its_schema(client: openai.OpenAI, choice: object) -> None:
    answer = client.chat.completions.create(tool_choice=choice, **SAMPLED, parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in CITY["enum"]


def test_a_forced_call_streams_to_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(tool_choice=NAMED, **SAMPLED).choices[0].message.tool_calls[0].function
    chunks = client.chat.completions.create(tool_choice=NAMED, **SAMPLED, stream=True)
    pieces = [call.function for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert "".join(piece.name or "" for piece in pieces) == whole.name
    assert "".join(piece.arguments or "" for piece in pieces) == whole.arguments


def test_an_answer_of_calls_is_returned_as_calls(client: openai.OpenAI) -> None:
    choice = _steered(client, f"{CALL}\n{CALL}").choices[0]
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [{"city": "Köln"}] * 2
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert choice.message.content is None
    assert choice.finish_reason == "tool_calls"


def test_an_answer_of_calls_streams_as_calls(client: openai.OpenAI) -> None:
    chunks = list(_steered(client, f"{CALL}\n{CALL}", stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls] == [(0, "get_weather"), (1, "get_weather")]
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Köln"}] * 2
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("words", ["It rains.", OTHER, "{not JSON"])
def test_an_answer_that_calls_nothing_known_is_text(client: openai.OpenAI, words: str) -> None:
    message = _steered(client, words).choices[0].message
    assert not message.tool_calls
    assert message.content == words
    chunks = _steered(client, words, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == words


def test_tool_choice_none_leaves_calls_as_text(client: openai.OpenAI) -> None:
    message = _steered(client, CALL, tool_choice="none").choices[0].message
    assert not message.tool_calls
    assert message.content == CALL


def test_json_without_tools_streams_as_it_comes(server: Server, client: openai.OpenAI) -> None:
    steer = {"structured_outputs": {"choice": [CALL]}}
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=ASK, max_tokens=100, temperature=0, stream=True, extra_body=steer
        )
    )
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(texts) == CALL
    assert len(texts) > 3


def _steered(client: openai.OpenAI, words: str, **options: object) -> ChatCompletion:
    """The model's tokens are noise, so a grammar of one sentence makes it say `words`."""
    steer = {"structured_outputs": {"choice": [words]}}
    return client.chat.completions.create(**{**SAMPLED, "tool_choice": "auto", **options}, extra_body=steer)
