"""A prompt of as many distinct pictures as one may have, and the plain-torch reference of it. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.engine.golden import PLACEHOLDER
from tests.engine.long_prompt import TEXT_IDS
from tests.oracle.kimi_vl import load, normalise

COUNT = 512
SIDES = (28, 56)  # pixels, either way: one, two or four tokens a picture, and nothing is scaled or padded
BLOCK = 7  # pixels of one colour a side
PATCH = 14
TAIL = 2  # tokens of text after the last picture
SWAPS = {f"swap_{one}_{other}": (one, other) for one, other in ((0, 511), (17, 18), (255, 402))}


@dataclass(frozen=True, slots=True)
class Expected:
    """Of the pictures in turn; orders with two swapped differ in what is given only."""

    rows: list[np.ndarray]  # of every picture, (its tokens, hidden)
    given: dict[str, np.ndarray]  # to the first layer, by the order's name, (prompt, hidden)
    last: np.ndarray  # logits, (vocabulary,)

    def prompt(self, order: str) -> list[int]:
        """Whole: placeholders repeated."""
        counts = iter(orders()[order])
        return [i for each in prompt() for i in [each] * (len(self.rows[next(counts)]) if each == PLACEHOLDER else 1)]


@cache
def pixels() -> list[np.ndarray]:
    """Of every picture, (height, width, 3) uint8: blocks of drawn colours."""
    rng = np.random.default_rng(COUNT)
    drawn = [rng.integers(0, 256, (*rng.choice(SIDES, 2) // BLOCK, 3), dtype=np.uint8) for _ in range(COUNT)]
    return [colours.repeat(BLOCK, 0).repeat(BLOCK, 1) for colours in drawn]


def orders() -> dict[str, list[int]]:
    """Numbers of the pictures as a prompt has them: in turn, and with two of them swapped."""
    found = {"in_turn": list(range(COUNT))}
    for name, (one, other) in SWAPS.items():
        found[name] = list(range(COUNT))
        found[name][one], found[name][other] = other, one
    return found


def prompt() -> list[int]:
    """A drawn token of text and one placeholder for every picture, then text."""
    texts = np.random.default_rng(COUNT + 1).integers(0, TEXT_IDS, COUNT + TAIL).tolist()
    return [token for text in texts[:COUNT] for token in (text, PLACEHOLDER)] + texts[COUNT:]


@torch.inference_mode()
def reference(checkpoint: Path) -> Expected:
    """In float32; the pictures of one size together, which the reference's tower never mixes."""
    model = load(checkpoint)
    rows: dict[int, Tensor] = {}
    for shape in {one.shape for one in pixels()}:
        numbers = [number for number, one in enumerate(pixels()) if one.shape == shape]
        height, width = shape[0] // PATCH, shape[1] // PATCH
        seen = model.see(normalise(patches([pixels()[number] for number in numbers])), height, width)
        rows |= dict(zip(numbers, seen, strict=True))
    found = Expected([rows[number].numpy() for number in range(COUNT)], {}, np.empty(0))
    for name, order in orders().items():
        ids = torch.tensor(found.prompt(name))
        given = model.language_model.model.embed_tokens(ids)
        given[ids == PLACEHOLDER] = torch.cat([rows[number] for number in order])
        found.given[name] = given.numpy()
    hidden = model.hidden(torch.tensor([found.prompt("in_turn")]), torch.cat([rows[n] for n in range(COUNT)]))
    return replace(found, last=model.logits(hidden[0, -1]).numpy())


def patches(images: list[np.ndarray]) -> Tensor:
    """Of one size -> (images, patches, 3, 14, 14) uint8, row by row."""
    count, height, width, _ = (stacked := torch.from_numpy(np.stack(images))).shape
    cut = stacked.view(count, height // PATCH, PATCH, width // PATCH, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    return cut.reshape(count, -1, 3, PATCH, PATCH)
