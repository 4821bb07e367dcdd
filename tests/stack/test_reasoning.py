"""Thoughts over HTTP: apart from the answer, the same streamed and not, and no grammar before the answer begins."""

import json

import pytest
from openai.types.chat import ChatCompletionMessage

from kimi_serve.inputs.thoughts import CLOSE, OPEN
from kimi_serve.inputs.variants import THINK_TRIGGER
from tests.stack.served import NAME, Server
from tests.stack.test_chat import SCHEMA

TOLD = {"role": "system", "content": f"{THINK_TRIGGER}, then answer."}
ASK = {"role": "user", "content": "What?"}
FORM = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
OPENED = {"continue_final_message": True, "add_generation_prompt": False}
# The model's tokens are noise, so vLLM's budget for thoughts makes it end one: by the closing marker, token by token.
BUDGET = 5


def ask(server: Server, prefill: str, **options: object) -> dict[str, object]:
    turns = [TOLD, ASK, {"role": "assistant", "content": prefill}]
    reply = server.conversation(turns, **{"max_tokens": 120, "temperature": 1, "seed": 5, **OPENED, **options})
    assert reply.status == 200, reply.body
    return reply.body["choices"][0]["message"]


def streamed(server: Server, prefill: str, **options: object) -> tuple[str, str]:
    """The joined reasoning and content."""
    turns = [TOLD, ASK, {"role": "assistant", "content": prefill}]
    body = {"max_tokens": 120, "temperature": 1, "seed": 5, **OPENED, **options}
    with server.client() as client:
        chunks = client.chat.completions.create(
            model=NAME, messages=turns, stream=True, max_tokens=120, temperature=1, seed=5, extra_body=body
        )
        deltas = [chunk.choices[0].delta.to_dict() for chunk in chunks if chunk.choices]
    return "".join(d.get("reasoning") or "" for d in deltas), "".join(d.get("content") or "" for d in deltas)


def test_a_thought_is_apart_from_the_answer(server: Server) -> None:
    message = ask(server, f"{OPEN}so", thinking_token_budget=BUDGET)
    assert message["reasoning"]
    assert message["content"]
    assert CLOSE not in message["reasoning"] + message["content"]


def test_streamed_the_thought_and_the_answer_are_the_same(server: Server) -> None:
    message = ask(server, f"{OPEN}so", thinking_token_budget=BUDGET)
    assert streamed(server, f"{OPEN}so", thinking_token_budget=BUDGET) == (message["reasoning"], message["content"])


def test_a_grammar_begins_after_the_thought(server: Server) -> None:
    message = ask(server, f"{OPEN}so", thinking_token_budget=BUDGET, response_format=FORM)
    assert message["reasoning"]
    assert json.loads(message["content"])["colour"] in ("red", "blue")


def test_a_grammar_begins_at_once_where_the_thought_is_closed(server: Server) -> None:
    message = ask(server, f"{OPEN}so{CLOSE}", response_format=FORM)
    assert not message["reasoning"]
    assert json.loads(message["content"])["colour"] in ("red", "blue")


def test_after_a_closed_thought_all_is_answer_streamed_and_not(server: Server) -> None:
    message = ask(server, f"{OPEN}so{CLOSE}")
    assert not message["reasoning"]
    assert streamed(server, f"{OPEN}so{CLOSE}") == ("", message["content"])


@pytest.mark.parametrize("told", [False, True])
def test_an_answer_without_a_thought_is_all_answer(server: Server, told: bool) -> None:
    turns = [TOLD, ASK] if told else [ASK]
    message = server.conversation(turns, max_tokens=12).body["choices"][0]["message"]
    assert not message["reasoning"]
    assert message["content"]


def test_the_field_is_called_reasoning(server: Server) -> None:
    # Clients of older servers look for `reasoning_content`; vLLM 0.32 no longer sends it.
    message = ask(server, f"{OPEN}so", thinking_token_budget=BUDGET)
    assert "reasoning_content" not in message
    assert ChatCompletionMessage.model_validate(message).to_dict()["reasoning"]
