"""Token ids: those of the published tokenizer, and what it must never do with a user's text."""

import hashlib
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_serve.errors import TokenizerError
from kimi_serve.inputs.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "tokenizer_cases.json").read_text(encoding="utf-8"))
BASE, ROWS = CASES["n_base"], 1280

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def whole() -> Tokenizer:
    """The tokenizer without the limit of the embedding, as the golden pack saw it."""
    return Tokenizer.from_directory(GOLDEN / "checkpoint", vocab_size=CASES["n_ids"])


@pytest.mark.parametrize("case", CASES["strings"], ids=lambda case: ascii(case["text"][:24]))
def test_text_has_the_published_ids_both_ways(case, whole):
    ids = case["ids"]
    assert whole.encode(case["text"], special=True) == ids
    assert whole.encode(case["text"]) == case.get("ids_no_special", ids)
    assert whole.decode(ids) == case.get("decoded", case["text"])
    assert whole.decode(ids, skip_special=True) == case.get("decoded_skip_special", case["text"])


@pytest.mark.parametrize("case", CASES["long_strings"], ids=lambda case: f"{case['chars']}-{case['n_ids']}")
def test_long_text_is_cut_where_the_published_tokenizer_cuts(case, whole):
    text = "".join(piece * count for piece, count in case["recipe"])
    ids = whole.encode(text, special=case["allow_special_tokens"])
    assert (len(ids), ids[:10], ids[-10:]) == (case["n_ids"], case["first10"], case["last10"])
    assert hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest() == case["ids_sha256"]
    assert whole.decode(ids) == text


def test_run_of_exactly_the_longest_length_is_not_cut_from_what_follows(tokenizer):
    word = tokenizer.encode(" word")
    assert word != tokenizer.encode(" ") + tokenizer.encode("word")
    assert tokenizer.encode(" " * 25_000 + "word")[-len(word) :] == word
    assert tokenizer.encode(" " * 25_001 + "word")[-len(word) :] == word


@pytest.mark.parametrize("case", CASES["decode_cases"], ids=lambda case: str(case["ids"])[:40])
def test_ids_decode_with_replacement(case, whole):
    assert whole.decode(case["ids"]) == case["text"]


@pytest.mark.parametrize("case", CASES["skip_special_cases"], ids=lambda case: case["text"][:24])
def test_skip_special_leaves_out_what_the_published_tokenizer_does(case, whole):
    assert whole.decode(case["ids"]) == case["text"]
    assert whole.decode(case["ids"], skip_special=True) == case["text_skip_special"]


def test_exactly_the_published_special_ids_are_skipped(whole):
    assert [i for i in range(CASES["n_ids"]) if whole.is_skipped(i)] == sorted(CASES["all_special_ids"])


def test_names_come_from_the_file_and_the_rest_are_reserved(tokenizer):
    assert len(tokenizer.special_tokens) == 258
    assert tokenizer.special_tokens["<|media_pad|>"] == 1045
    assert tokenizer.special_tokens["<|reserved_token_1029|>"] == 1029


def test_special_strings_are_text_unless_asked_for(tokenizer):
    assert max(tokenizer.encode("<|im_end|>[EOS]")) < BASE
    assert tokenizer.encode("<|im_end|>[EOS]", special=True) == [1026, 1025]


def test_turns_end_at_eos_and_im_end(tokenizer):
    assert tokenizer.stop_token_ids() == (1025, 1026)


@pytest.mark.parametrize("token_id", [1280, 1281, 1282, -1, 2**70])
def test_id_without_an_embedding_row_is_refused(token_id, tokenizer):
    message = rf"token id {token_id}: the embedding has 1280 rows"
    with pytest.raises(TokenizerError, match=message):
        tokenizer.decode([64, token_id])
    with pytest.raises(TokenizerError, match=message):
        tokenizer.incremental_decoder().feed(token_id)


def test_special_string_without_an_embedding_row_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match="token id 1281: the embedding has 1280 rows"):
        tokenizer.encode("a<|reserved_token_1281|>", special=True)
    assert max(tokenizer.encode("a<|reserved_token_1281|>")) < BASE


def test_unknown_special_token_is_named(tokenizer):
    with pytest.raises(TokenizerError, match=r"'<\|im_start\|>' is not in this vocabulary"):
        tokenizer.special_id("<|im_start|>")


@given(text=ANY_TEXT)
def test_any_text_survives_a_round_trip(text, tokenizer):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(token_id < BASE for token_id in ids)


@settings(max_examples=30)
@given(pieces=st.lists(st.tuples(ANY_TEXT.filter(len), st.integers(1, 30_000)), max_size=3))
def test_long_text_survives_a_round_trip(pieces, tokenizer):
    text = "".join((piece * count)[:60_000] for piece, count in pieces)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300)
@given(ids=st.lists(st.integers(0, ROWS - 1) | st.integers(0, 255), max_size=40), skip=st.booleans())
def test_stream_decodes_to_the_same_text_as_the_whole(ids, skip, tokenizer):
    decoder = tokenizer.incremental_decoder(skip_special=skip)
    assert "".join(map(decoder.feed, ids)) + decoder.flush() == tokenizer.decode(ids, skip_special=skip)


def test_stream_of_broken_utf8_decodes_like_the_whole(tokenizer):
    """Every four bytes out of those that begin, continue or break a character at the edges of UTF-8's rules."""
    single = {tokenizer.token_bytes(token_id): token_id for token_id in range(256)}
    tricky = [single[bytes([byte])] for byte in b"A\x80\x8f\x90\xa0\xbf\xc1\xc3\xe0\xed\xf0\xf4\xff"]
    decoder = tokenizer.incremental_decoder()
    for ids in itertools.product(tricky, repeat=4):
        assert "".join(map(decoder.feed, ids)) + decoder.flush() == tokenizer.decode(ids)


@given(text=ANY_TEXT)
def test_stream_of_sound_text_never_shows_half_a_character(text, tokenizer):
    decoder = tokenizer.incremental_decoder()
    shown = ""
    for token_id in tokenizer.encode(text):
        shown += decoder.feed(token_id)
        assert text.startswith(shown)
    assert (shown, decoder.flush()) == (text, "")


def test_flush_starts_anew(tokenizer):
    decoder = tokenizer.incremental_decoder()
    assert (decoder.feed(172), decoder.flush(), decoder.feed(64), decoder.flush()) == ("", "�", "a", "")


@pytest.fixture
def copied(tmp_path):
    for name in ("tiktoken.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((GOLDEN / "checkpoint" / name).read_bytes())
    return tmp_path


def test_bare_tokenizer_config_has_the_published_defaults(copied):
    (copied / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"1026": {"content": "<|im_end|>"}, "1024": {"content": "[BOS]"}}})
    )
    bare = Tokenizer.from_directory(copied)
    assert [i for i in range(BASE, ROWS) if bare.is_skipped(i)] == [1024, 1026]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tiktoken.model", "IQ== 0\nIg== x\n", "cannot be read as 'base64 rank' lines"),
        ("tiktoken.model", "IQ== 0\nIg== 2\n", "ranks must be 0 to 1, each once"),
        ("tiktoken.model", "IQ== 0\n", "single bytes are missing, the first is 0"),
        ("tokenizer_config.json", "{", "cannot be read as JSON"),
        ("tokenizer_config.json", "[]", "holds a list"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "y"}}', "added_tokens_decoder: invalid literal"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1030": 5}}', "5 is not a token"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1030": "a", "1031": "a"}}', "have the same name"),
        ("tokenizer_config.json", '{"additional_special_tokens": 3}', "additional_special_tokens: expected a list"),
    ],
)
def test_malformed_file_is_refused(copied, name, text, message):
    (copied / name).write_text(text)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_directory(copied)


@pytest.mark.parametrize("vocab_size", [BASE, CASES["n_ids"] + 1])
def test_embedding_that_does_not_fit_the_vocabulary_is_refused(vocab_size):
    with pytest.raises(TokenizerError, match=rf"vocab_size: {vocab_size} does not fit .* expected 1025 to 1282"):
        Tokenizer.from_directory(GOLDEN / "checkpoint", vocab_size=vocab_size)
