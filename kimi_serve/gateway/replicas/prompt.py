"""A prompt as a chain of hashes: equal beginnings are found without it. Knows parts; never a replica."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from blake3 import blake3

PIECE = 2048  # bytes of text a block: a shared document is found although the question after it differs


@dataclass(frozen=True, slots=True)
class Text:
    data: bytes  # as rendered, with the role marks around it
    tokens: int


@dataclass(frozen=True, slots=True)
class Picture:
    hash: bytes  # of its content: what the engine's caches know it by
    tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """Block i ends `ends[i]` tokens into the prompt; `hashes[i]` stands for everything up to there."""

    hashes: tuple[bytes, ...]
    ends: tuple[int, ...]
    key: bytes  # the opening's hash: the same in every turn of a conversation, and on every gateway
    pictures: tuple[tuple[Picture, int], ...]  # with the token at which each ends


def read_prompt(parts: Sequence[Text | Picture], salt: bytes, opening: int) -> Prompt:
    """`salt` is the tenant's, as prefixes are not shared between tenants.

    `opening` says how many parts belong to the opening: up to and with the first message of a user.
    """
    assert 0 < opening <= len(parts)
    link, end, key = _hash(b"S", salt), 0, b""
    hashes: list[bytes] = []
    ends: list[int] = []
    pictures: list[tuple[Picture, int]] = []
    for number, part in enumerate(parts, start=1):
        start = end
        for kind, data, tokens in _blocks(part):
            link = _hash(kind, link, data)
            end = start + tokens
            hashes.append(link)
            ends.append(end)
        if isinstance(part, Picture):
            pictures.append((part, end))
        if number == opening:
            key = link
    return Prompt(tuple(hashes), tuple(ends), key, tuple(pictures))


def _blocks(part: Text | Picture) -> list[tuple[bytes, bytes, int]]:
    """(kind, content, tokens from the part's start to the block's end); a text's tokens lie evenly over its bytes."""
    if isinstance(part, Picture):
        return [(b"P", part.hash, part.tokens)]
    size = len(part.data)
    cuts = [*range(0, size, PIECE), size]
    return [(b"T", part.data[start:stop], part.tokens * stop // size) for start, stop in pairwise(cuts)]


def _hash(*pieces: bytes) -> bytes:
    return blake3(b"".join(pieces)).digest(16)
