"""Kimi-VL's byte-pair tokenizer over tiktoken. Knows bytes and ids; never a chat or an image."""

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

import tiktoken

from kimi_serve.errors import TokenizerError

NUM_SPECIAL = 258  # ids after the byte-pair vocabulary: 256 reserved, and two more by the published class
NUM_SPECIAL_ROWS = 256  # of them have an embedding

# The published cuts: merges never cross them, so they are part of the vocabulary's meaning.
BLOCK_CHARS = 400_000
RUN_CHARS = 25_000

SPLIT_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

# What tokenizer_config.json says when it says nothing (defaults of the published class).
DEFAULT_NAMED = {"bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
DEFAULT_ADDITIONAL = ("<|im_end|>", "<|im_middle|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>")
STOP_TOKENS = ("[EOS]", "<|im_end|>")

_RUNS = re.compile(r"\s+|\S+")


class Tokenizer:
    """Text to token ids and back. Text is only text: special tokens are made with `special=True` or by id.

    `vocab_size` counts the rows of the embedding. The vocabulary has two ids more than the published embedding has
    rows; an id without a row is refused both ways, because an engine would read outside the table.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        names: Mapping[int, str],
        *,
        vocab_size: int | None = None,
        skipped: Iterable[str] = (*DEFAULT_NAMED.values(), *DEFAULT_ADDITIONAL),
    ) -> None:
        """`names` overrides <|reserved_token_N|> by id; `skipped` are the tokens that skip_special leaves out."""
        base = len(ranks)
        self.special_tokens = _special_tokens(base, names)
        self.vocab_size = base + NUM_SPECIAL_ROWS if vocab_size is None else vocab_size
        if not base < self.vocab_size <= base + NUM_SPECIAL:
            raise TokenizerError(
                f"vocab_size: {self.vocab_size} does not fit a vocabulary of {base} byte pairs; "
                f"expected {base + 1} to {base + NUM_SPECIAL}"
            )
        self._skipped_ids = frozenset(self.special_tokens[name] for name in skipped if name in self.special_tokens)
        self._known: dict[str, list[int]] = {}
        self._encoding = tiktoken.Encoding(
            "kimi", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=self.special_tokens
        )

    @classmethod
    def from_directory(cls, path: Path | str, *, vocab_size: int | None = None) -> Self:
        """Read tiktoken.model and tokenizer_config.json."""
        directory = Path(path)
        config = _read_config(directory / "tokenizer_config.json")
        return cls(
            _read_ranks(directory / "tiktoken.model"), _names(config), vocab_size=vocab_size, skipped=_skipped(config)
        )

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Encode text. `special=True` turns the names of special tokens into their ids: never for what a user wrote."""
        if not special and len(text) <= RUN_CHARS:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        for piece in _pieces(text):
            if special:
                ids += self._encoding.encode(piece, allowed_special="all")
            else:
                ids += self._encoding.encode_ordinary(piece)
        if special:
            self._refuse_rowless(ids)
        return ids

    def encode_known(self, text: str) -> list[int]:
        """Encode text that is one of a few, which are remembered for good: never what a user wrote."""
        ids = self._known.get(text)
        if ids is None:
            ids = self._known[text] = self.encode(text)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Join the bytes of the tokens; broken UTF-8 becomes U+FFFD."""
        kept = self._kept(ids) if skip_special else list(ids)
        self._refuse_rowless(kept)
        return self._encoding.decode_bytes(kept).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        self._refuse_rowless((token_id,))
        return self._encoding.decode_single_token_bytes(token_id)

    def is_skipped(self, token_id: int) -> bool:
        """Whether skip_special leaves this token out."""
        return token_id in self._skipped_ids

    def incremental_decoder(self, *, skip_special: bool = False) -> "IncrementalDecoder":
        return IncrementalDecoder(self, skip_special=skip_special)

    def special_id(self, name: str) -> int:
        """Return the id of a special token that has an embedding."""
        token_id = self.special_tokens.get(name)
        if token_id is None:
            raise TokenizerError(f"special token {name!r} is not in this vocabulary")
        if token_id >= self.vocab_size:
            self._refuse_rowless((token_id,))
        return token_id

    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a turn, by name: the files' eos_token_id alone is not what ends one."""
        return tuple(self.special_id(name) for name in STOP_TOKENS)

    def _kept(self, ids: Iterable[int]) -> list[int]:
        return [token_id for token_id in ids if token_id not in self._skipped_ids]

    def _refuse_rowless(self, ids: Iterable[int]) -> None:
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(f"token id {token_id}: the embedding has {self.vocab_size} rows, from id 0")


class IncrementalDecoder:
    """Decode a stream of ids. Never gives half a character; all outputs joined equal Tokenizer.decode of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Return the characters that this token completes: often none or several."""
        data = self._tokenizer.token_bytes(token_id)
        if self._skip_special and self._tokenizer.is_skipped(token_id):
            return ""
        return self._utf8.decode(data)

    def flush(self) -> str:
        """Return what is held back, as U+FFFD, and start anew."""
        return self._utf8.decode(b"", final=True)


def _pieces(text: str) -> Iterator[str]:
    """Cut text as the published tokenizer does: into blocks, and blocks where a run of (non-)whitespace is too long."""
    for start in range(0, len(text), BLOCK_CHARS):
        block = text[start : start + BLOCK_CHARS]
        if len(block) <= RUN_CHARS:
            yield block
            continue
        piece_start = 0
        for run in _RUNS.finditer(block):
            for cut in range(run.start() + RUN_CHARS, run.end(), RUN_CHARS):
                yield block[piece_start:cut]
                piece_start = cut
        yield block[piece_start:]


def _special_tokens(base: int, names: Mapping[int, str]) -> dict[str, int]:
    ids = range(base, base + NUM_SPECIAL)
    tokens = {names.get(token_id, f"<|reserved_token_{token_id}|>"): token_id for token_id in ids}
    if len(tokens) < NUM_SPECIAL:
        raise TokenizerError("tokenizer_config.json.added_tokens_decoder: two special tokens have the same name")
    return tokens


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Read tiktoken's format: one `base64 rank` per line. (tiktoken's own reader caches by path: a stale file.)"""
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (OSError, ValueError, binascii.Error) as error:
        raise TokenizerError(f"{path}: cannot be read as 'base64 rank' lines: {error}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"{path}: ranks must be 0 to {len(ranks) - 1}, each once")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise TokenizerError(f"{path}: single bytes are missing, the first is {missing[0]}")
    return ranks


def _read_config(path: Path) -> Mapping[str, object]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{path}: holds a {type(config).__name__}; expected an object")
    return config


def _names(config: Mapping[str, object]) -> dict[int, str]:
    added = config.get("added_tokens_decoder", {})
    if not isinstance(added, Mapping):
        raise TokenizerError("tokenizer_config.json.added_tokens_decoder: expected an object")
    try:
        return {int(token_id): _content(token) for token_id, token in added.items()}
    except ValueError as error:
        raise TokenizerError(f"tokenizer_config.json.added_tokens_decoder: {error}") from error


def _skipped(config: Mapping[str, object]) -> list[str]:
    named = [config.get(key, default) for key, default in DEFAULT_NAMED.items()]
    additional = config.get("additional_special_tokens", DEFAULT_ADDITIONAL)
    if not isinstance(additional, (list, tuple)):
        raise TokenizerError("tokenizer_config.json.additional_special_tokens: expected a list")
    return [_content(token) for token in (*named, *additional) if token is not None]


def _content(token: object) -> str:
    """Return a token's text: files hold a string or an object with `content`."""
    text = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(text, str):
        raise TokenizerError(f"tokenizer_config.json: {token!r} is not a token; expected a string or its content")
    return text
