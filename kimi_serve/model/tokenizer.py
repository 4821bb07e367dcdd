"""inputs.tokenizer as vLLM wants a tokenizer. Encoding is ours; decoding uses the `tokenizers` library's fast stream.

Only a subclass of Transformers' fast class gets vLLM's compiled detokenizer and every structured-output backend.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as CompiledTokenizer
from transformers import BatchEncoding, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import TruncationStrategy
from vllm.transformers_utils.repo_utils import get_non_weight_snapshot_path

from kimi_serve.inputs.tokenizer import Tokenizer
from kimi_serve.model import stops


class KimiVLTokenizer(PreTrainedTokenizerFast):
    """`encode` reads special tokens by default, as raw prompts need; chats go through the renderer: it never does."""

    def __init__(self, native: Tokenizer, *, eos_token: str, name_or_path: str, **kwargs: Any) -> None:
        self.native = native
        super().__init__(
            tokenizer_object=_compiled(native),
            bos_token="[BOS]",
            eos_token=eos_token,
            pad_token="[PAD]",
            unk_token="[UNK]",
            clean_up_tokenization_spaces=False,
            name_or_path=name_or_path,
            **kwargs,
        )

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | Path,
        *args: object,
        revision: str | None = None,
        download_dir: str | None = None,
        trust_remote_code: bool = False,  # nothing of the repository is ever run
        truncation_side: str = "left",
        **kwargs: object,
    ) -> Self:
        directory = Path(
            get_non_weight_snapshot_path(str(path_or_repo_id), revision=revision, cache_dir=download_dir, token=None)
        )
        native = Tokenizer.from_directory(directory)
        return cls(
            native,
            eos_token=stops.primary(directory, native),
            name_or_path=str(path_or_repo_id),
            truncation_side=truncation_side,
        )

    @cached_property
    def turn_start_id(self) -> int:
        """The token after which a turn's content begins."""
        return self.native.special_id("<|im_middle|>")

    @property
    def vocab_size(self) -> int:
        return self.native.vocab_size

    def __len__(self) -> int:
        return self.native.vocab_size

    @property
    def max_token_id(self) -> int:
        return self.native.vocab_size - 1

    @cached_property
    def max_chars_per_token(self) -> int:
        return max(len(self.native.token_bytes(token_id)) for token_id in range(self.vocab_size))

    @cached_property
    def _vocab_cache(self) -> dict[str, int]:
        return super().get_vocab()

    def get_vocab(self) -> dict[str, int]:
        return self._vocab_cache

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # nothing here changes after construction, so threads may share it

    def _encode_plus(
        self,
        text: str | list[str],
        text_pair: None = None,
        add_special_tokens: bool = True,
        max_length: int | None = None,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        **kwargs: object,
    ) -> BatchEncoding:
        if text_pair is not None:
            raise ValueError("text_pair: not supported; pass one text")
        limit = None if truncation_strategy is TruncationStrategy.DO_NOT_TRUNCATE else max_length
        if isinstance(text, str):
            ids = self._cut(self.native.encode(text, special=add_special_tokens), limit)
            return BatchEncoding({"input_ids": ids, "attention_mask": [1] * len(ids)})
        batch = [self._cut(self.native.encode(item, special=add_special_tokens), limit) for item in text]
        return BatchEncoding({"input_ids": batch, "attention_mask": [[1] * len(ids) for ids in batch]})

    def _cut(self, ids: list[int], limit: int | None) -> list[int]:
        if limit is None or len(ids) <= limit:
            return ids
        return ids[-limit:] if self.truncation_side == "left" else ids[:limit]

    def _decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **kwargs: object) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.native.decode(ids, skip_special=skip_special_tokens)


def _compiled(native: Tokenizer) -> CompiledTokenizer:
    """The same vocabulary for decoding. It has no merges: encoding never reaches it."""
    base = min(native.special_tokens.values())
    alphabet = _byte_alphabet()
    vocab = {"".join(alphabet[byte] for byte in native.token_bytes(i)): i for i in range(base)}
    compiled = CompiledTokenizer(models.BPE(vocab=vocab, merges=[]))
    compiled.decoder = decoders.ByteLevel()
    names = sorted(native.special_tokens, key=native.special_tokens.__getitem__)[: native.vocab_size - base]
    for name in names:  # in order: each gets the next id
        token = AddedToken(name, normalized=False, special=native.is_skipped(native.special_tokens[name]))
        if native.is_skipped(native.special_tokens[name]):
            compiled.add_special_tokens([token])
        else:
            compiled.add_tokens([token])
    return compiled


def _byte_alphabet() -> list[str]:
    """The byte-level convention of GPT-2: printable Latin-1 stands for itself, the other bytes follow from U+0100."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
