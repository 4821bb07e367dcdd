"""The small vocabulary: bytes, plus whole words of the questions. Knows the tiktoken file format; trains nothing."""

from __future__ import annotations

import base64
import re
from pathlib import Path

SPECIAL = {
    0: "[BOS]",
    1: "[EOS]",
    2: "<|im_end|>",
    3: "<|im_user|>",
    4: "<|im_assistant|>",
    10: "<|im_system|>",
    17: "<|im_middle|>",
    18: "<|media_start|>",
    19: "<|media_content|>",
    20: "<|media_end|>",
    21: "<|media_pad|>",
    254: "[UNK]",
    255: "[PAD]",
}


def merges(texts: list[str]) -> list[bytes]:
    """Tokens beyond the bytes: every beginning of every word, its space included.

    A byte-pair merge is a pair of tokens, so a word needs its beginnings. A word to be read stands where no space
    precedes it, so it stays spelled in letters, and reading is never a guess at a whole-word token.
    """
    found: dict[bytes, None] = {}
    for text in texts:
        for word in re.findall(r"[ (.]?[A-Za-z]+|[^\sA-Za-z0-9]+", text):
            raw = word.encode()
            for end in range(2, len(raw) + 1):
                found.setdefault(raw[:end])
    return list(found)


def write(path: Path, texts: list[str]) -> int:
    """Write tiktoken.model; the number of byte-pair tokens."""
    tokens = [bytes([b]) for b in range(256)] + merges(texts)
    path.write_text("".join(f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens)))
    return len(tokens)


def config(base: int) -> dict[str, object]:
    """tokenizer_config.json in the published form."""
    decoder = {
        str(base + offset): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for offset, name in SPECIAL.items()
    }
    return {
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [
            "<|im_end|>",
            "<|im_user|>",
            "<|im_assistant|>",
            "<|im_system|>",
            "<|im_middle|>",
        ],
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {},
        "model_max_length": 1048576,
        "tokenizer_class": "TikTokenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]},
    }
