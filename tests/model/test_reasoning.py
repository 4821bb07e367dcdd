"""◁think▷ through vLLM's reasoning interface: the same answer in one piece, in text pieces and in tokens."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from kimi_serve.inputs import chat
from kimi_serve.inputs.thoughts import CLOSE, OPEN
from kimi_serve.model.reasoning import KimiVLReasoningParser, KimiVLWhenToldReasoningParser

REQUEST = ChatCompletionRequest(messages=[{"role": "user", "content": "Hi"}], model="kimi-vl")
OUTPUTS = [
    f"{OPEN}why{CLOSE}because",
    f"{OPEN}\n猫 🙂\n\n{CLOSE}\n\n答案: 42",
    f"{OPEN}unfinished",
    f"{OPEN}why{CLOSE}",
    "no thought at all",
    "◁thin ice",
]
PARTS = st.sampled_from([OPEN, CLOSE, "◁", "/think▷", " ", "\n", "a", "图"])
TEXT = st.one_of(st.sampled_from(OUTPUTS), st.lists(PARTS, max_size=8).map(lambda parts: OPEN + "".join(parts)))


def prompt(tokenizer, *, system: str = "Be brief.", prefill: str | None = None) -> list[int]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Why?"}]
    if prefill is None:
        return chat.render(messages, tokenizer.native)
    messages.append({"role": "assistant", "content": prefill})
    return chat.render(
        messages, tokenizer.native, add_generation_prompt=False, continue_final_message=True, keep_thoughts=True
    )


def streamed(parser: KimiVLReasoningParser, pieces: list[str]) -> tuple[str | None, str | None]:
    deltas = [parser.extract_reasoning_streaming("", "", piece, [], [], []) for piece in pieces]
    deltas.append(parser.finish_streaming())
    found = [delta for delta in deltas if delta is not None]
    reasoning = "".join(delta.reasoning or "" for delta in found)
    return reasoning or None, "".join(delta.content or "" for delta in found) or None


@given(TEXT, st.lists(st.integers(0, 60), max_size=6))
def test_any_chunking_gives_what_the_whole_gives(tokenizer, text, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    whole = KimiVLReasoningParser(tokenizer).extract_reasoning(text, REQUEST)
    assert streamed(KimiVLReasoningParser(tokenizer), pieces) == whole


@pytest.mark.parametrize("text", OUTPUTS)
def test_one_token_at_a_time_gives_what_the_whole_gives(tokenizer, text):
    decoder = tokenizer.native.incremental_decoder()
    pieces = [decoder.feed(token_id) for token_id in tokenizer.native.encode(text)]
    whole = KimiVLReasoningParser(tokenizer).extract_reasoning(text, REQUEST)
    assert streamed(KimiVLReasoningParser(tokenizer), pieces) == whole


def test_thought_that_the_prompt_opened_is_told_from_the_answer(tokenizer):
    parser = KimiVLReasoningParser(tokenizer)
    parser.adjust_initial_state_from_prompt(prompt(tokenizer, prefill=f"{OPEN}Let me"))
    assert streamed(parser, [" see", CLOSE, "Yes"]) == ("see", "Yes")
    assert KimiVLReasoningParser(tokenizer).extract_reasoning(f" see{CLOSE}Yes", REQUEST) == ("see", "Yes")


@pytest.mark.parametrize(
    ("prefill", "ended"),
    [(None, False), (f"{OPEN}so", False), (f"{OPEN}\n\n{CLOSE}", True), (f"{OPEN}a{CLOSE}b", True)],
)
def test_prompt_tells_whether_a_thought_is_to_come(tokenizer, prefill, ended):
    assert KimiVLReasoningParser(tokenizer).is_reasoning_end(prompt(tokenizer, prefill=prefill)) is ended


def test_thoughts_of_earlier_turns_do_not_end_this_one(tokenizer):
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": f"{OPEN}first{CLOSE}Yes"},
        {"role": "user", "content": "Two?"},
    ]
    ids = chat.render(messages, tokenizer.native, keep_thoughts=True)
    assert not KimiVLReasoningParser(tokenizer).is_reasoning_end(ids)


@pytest.mark.parametrize(("system", "ended"), [("Think first.", False), ("Be brief.", True)])
def test_model_that_thinks_when_told_is_asked_by_its_system_turn(tokenizer, system, ended):
    assert KimiVLWhenToldReasoningParser(tokenizer).is_reasoning_end(prompt(tokenizer, system=system)) is ended


def test_user_cannot_ask_for_thoughts_in_place_of_the_system_turn(tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Think first."}]
    assert KimiVLWhenToldReasoningParser(tokenizer).is_reasoning_end(chat.render(messages, tokenizer.native))


def first_end(tokenizer, text: str) -> int | None:
    """Number of output tokens after which the grammar engine is told that the thought is over."""
    ids, output = prompt(tokenizer), tokenizer.native.encode(text)
    parser = KimiVLReasoningParser(tokenizer)
    for count in range(1, len(output) + 1):
        if parser.is_reasoning_end_streaming(ids + output[:count], output[count - 1 : count]):
            return count
    return None


def test_grammar_begins_with_the_token_that_closes_the_thought(tokenizer):
    thought = f"{OPEN}why{CLOSE}"
    count = first_end(tokenizer, thought + '{"a": 1}')
    output = tokenizer.native.encode(thought + '{"a": 1}')
    assert CLOSE in tokenizer.native.decode(output[:count])
    assert CLOSE not in tokenizer.native.decode(output[: count - 1])


def test_grammar_begins_at_once_where_no_thought_comes(tokenizer):
    assert first_end(tokenizer, "answer") == 1


def test_grammar_waits_for_an_unfinished_thought(tokenizer):
    assert first_end(tokenizer, f"{OPEN}" + "so much to say " * 20) is None


def test_content_ids_begin_after_the_closing_marker(tokenizer):
    parser, answer = KimiVLReasoningParser(tokenizer), tokenizer.native.encode("\n\nBecause.")
    thought = tokenizer.native.encode(f"{OPEN}why{CLOSE}")
    assert parser.extract_content_ids(thought + answer) == answer
    assert parser.extract_content_ids(thought[:-1]) == []


def test_tokens_of_the_thought_are_counted(tokenizer):
    parser = KimiVLReasoningParser(tokenizer)
    thought, answer = tokenizer.native.encode(f"{OPEN}why{CLOSE}"), tokenizer.native.encode("Because.")
    assert parser.count_reasoning_tokens(thought + answer) == len(thought)
    assert parser.count_reasoning_tokens(answer) == 0


def test_other_tokenizer_is_refused_by_name():
    with pytest.raises(TypeError, match="tokenizer object is not KimiVLTokenizer"):
        KimiVLReasoningParser(object())
