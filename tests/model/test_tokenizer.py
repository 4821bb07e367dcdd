"""The tokenizer that vLLM gets: the same ids and text as ours, whole, streamed and compiled into grammars."""

import json
from types import SimpleNamespace

import pytest
import xgrammar
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from vllm import SamplingParams
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer, IncrementalDetokenizer

from kimi_serve.errors import TokenizerError
from kimi_serve.inputs.tokenizer import Tokenizer

ROWS, IM_END = 1280, 1026
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ANY_BYTES = st.lists(st.one_of(st.integers(0, 255), st.integers(0, 1023)), max_size=12)  # mostly broken UTF-8
ANY_IDS = st.lists(st.integers(0, ROWS - 1), max_size=40)


@pytest.fixture(scope="session")
def native(golden_pack) -> Tokenizer:
    return Tokenizer.from_directory(golden_pack / "checkpoint")


def stream(tokenizer, ids: list[int], prompt: list[int], *, skip_special: bool) -> str:
    """The text that vLLM's detokenizer gives a client, one token a step."""
    params = SamplingParams(skip_special_tokens=skip_special, spaces_between_special_tokens=False)
    request = SimpleNamespace(
        request_id="r", external_req_id="r", prompt_token_ids=prompt, prompt_embeds=None, sampling_params=params
    )
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    assert isinstance(detokenizer, FastIncrementalDetokenizer)
    text = ""
    for number, token_id in enumerate(ids, 1):
        detokenizer.update([token_id], False)
        text += detokenizer.get_next_output_text(finished=number == len(ids), delta=True)
    return text


@given(ANY_TEXT, st.booleans())
@example("<|im_end|>[EOS]<|media_pad|>", True)
@example("<|im_end|>[EOS]<|media_pad|>", False)
def test_encoding_is_that_of_inputs(tokenizer, native, text, special):
    assert tokenizer.encode(text, add_special_tokens=special) == native.encode(text, special=special)
    assert tokenizer(text, add_special_tokens=special).input_ids == native.encode(text, special=special)


@given(ANY_IDS, st.booleans())
def test_decoding_is_that_of_inputs(tokenizer, native, ids, skip):
    assert tokenizer.decode(ids, skip_special_tokens=skip) == native.decode(ids, skip_special=skip)


@given(st.lists(ANY_TEXT, max_size=4))
def test_batches_are_encoded_one_by_one(tokenizer, native, texts):
    assert tokenizer(texts, add_special_tokens=False).input_ids == [native.encode(text) for text in texts]


@given(ANY_TEXT, st.booleans())
@example("日本語 한국어 🙂🙃 👩‍👩‍👧 é ñ 图片", True)
@example("🙂" * 8, False)
def test_streamed_text_is_the_text(tokenizer, native, text, skip):
    prompt = native.encode("<|im_assistant|>assistant<|im_middle|>", special=True)
    assert stream(tokenizer, native.encode(text), prompt, skip_special=skip) == text


@settings(max_examples=200)
@given(ANY_BYTES)
def test_streamed_bytes_show_all_but_an_unfinished_end(tokenizer, native, ids):
    """A token that ends inside a character is held back until the next one tells how it goes on."""
    after = native.encode("A")
    assert native.decode(ids).startswith(stream(tokenizer, ids, [], skip_special=True))
    assert stream(tokenizer, ids + after, [], skip_special=True) == native.decode(ids + after)


def test_control_tokens_are_left_out_of_a_stream_unless_asked_for(tokenizer, native):
    ids = [*native.encode("done"), IM_END]
    assert stream(tokenizer, ids, [], skip_special=True) == "done"
    assert stream(tokenizer, ids, [], skip_special=False) == "done<|im_end|>"


@pytest.mark.parametrize("token_id", [ROWS, ROWS + 1, -1])
def test_id_without_an_embedding_is_refused(tokenizer, token_id):
    with pytest.raises(TokenizerError, match=f"token id {token_id}: the embedding has {ROWS} rows"):
        tokenizer.decode([token_id])


def test_vocabulary_ends_where_the_embedding_does(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == ROWS
    assert tokenizer.max_token_id == ROWS - 1
    assert sorted(tokenizer.get_vocab().values()) == list(range(ROWS))


def test_compiled_vocabulary_has_our_bytes_under_our_ids(tokenizer, native):
    for token_id in range(1024):
        assert tokenizer._tokenizer.decode([token_id]) == native.token_bytes(token_id).decode("utf-8", "replace")


def test_vllm_takes_it_for_a_fast_tokenizer(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.is_fast


def test_truncation_keeps_the_end_of_a_prompt(tokenizer, native):
    ids = native.encode("one two three four")
    assert tokenizer.encode("one two three four", truncation=True, max_length=3) == ids[-3:]


def test_grammars_accept_what_the_tokens_spell(tokenizer, native):
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=ROWS)
    compiler = xgrammar.GrammarCompiler(info)
    schema = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    for token_id in native.encode('{"word": "猫 🙂"}'):
        assert matcher.accept_token(token_id)
    assert matcher.accept_token(IM_END)
    assert matcher.is_terminated()
    assert native.token_bytes(300) == info.decoded_vocab[300]
