"""The golden pack's answers over HTTP: the whole path, from data URLs to text, is the reference implementation's."""

import pytest

from tests.stack import pictures
from tests.stack.served import Server


@pytest.mark.parametrize("name", ["c2_one_image_exact", "c5_three_images"])
def test_the_answer_is_the_reference_implementations(
    server: Server, golden_cases: dict[str, dict[str, object]], name: str
) -> None:
    case = golden_cases[name]
    paths = iter(case["images"])
    turns = [{**turn, "content": _with_pictures(turn["content"], paths)} for turn in case["messages"]]
    options = {"ignore_eos": True, "max_tokens": len(case["greedy_ids"]), "return_token_ids": True}
    reply = server.conversation(turns, **options)
    assert reply.body["choices"][0]["token_ids"] == case["greedy_ids"]
    assert reply.text == case["greedy_text"]
    assert reply.prompt_tokens == case["n_prompt_tokens"]


def _with_pictures(content: object, paths: object) -> object:
    if isinstance(content, str):
        return content
    return [pictures.part(pictures.golden(next(paths))) if part["type"] == "image" else part for part in content]
