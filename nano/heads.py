"""Training-only heads that read what the decoder is given. Knows labels; exported nowhere."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano.labels import CHARACTERS, MOST_CHARACTERS
from nano.pictures import COLOURS, SHAPES

HEAD_SIZES = {
    "character": 2 * (1 + len(CHARACTERS)),
    "place": 2 * 2 * MOST_CHARACTERS,
    "shape": 1 + len(SHAPES),
    "colour": len(COLOURS),
    "offset": 2,
}


PATCHES = 4  # of a token


class DenseHeads(nn.Module):
    """What stands in every patch, read off the projected rows: the model learns to see before it is asked."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, PATCHES * size) for name, size in HEAD_SIZES.items()})

    def loss(self, rows: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """rows (pictures*tokens, hidden); labels (pictures, tokens, 4, ...)."""
        leading = labels["shape"].shape  # (pictures, tokens, 4)
        normed = self.norm(rows)
        out = {name: head(normed).view(*leading, HEAD_SIZES[name]) for name, head in self.heads.items()}
        character = out["character"].unflatten(-1, (2, -1))
        place = out["place"].unflatten(-1, (2, -1))
        weight = torch.ones(1 + len(CHARACTERS))
        weight[0] = 0.04
        seen = labels["shape"] > 0
        shape_weight = torch.ones(1 + len(SHAPES))
        shape_weight[0] = 0.05
        losses = {
            "character": F.cross_entropy(character.flatten(0, -2), labels["character"].flatten(), weight=weight),
            "place": F.cross_entropy(place.flatten(0, -2), labels["place"].flatten(), ignore_index=-100)
            if (labels["place"] >= 0).any()
            else rows.sum() * 0,
            "shape": F.cross_entropy(out["shape"].flatten(0, -2), labels["shape"].flatten(), weight=shape_weight),
            "colour": F.cross_entropy(out["colour"].flatten(0, -2), labels["colour"].flatten(), ignore_index=-100)
            if seen.any()
            else rows.sum() * 0,
            "offset": 10 * ((out["offset"] - labels["offset"])[seen] ** 2).mean() if seen.any() else rows.sum() * 0,
        }
        there = labels["character"] > 0
        right = (character.argmax(-1) == labels["character"])[there]
        stats = {name: float(v.detach()) for name, v in losses.items()}
        stats["characters_right"] = float(right.float().mean()) if there.any() else math.nan
        return sum(losses.values(), torch.zeros(())), stats
