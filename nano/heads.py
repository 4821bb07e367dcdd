"""Training-only heads that read what the decoder is given. Knows labels; exported nowhere."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kimi_serve.inputs.tokenizer import Tokenizer
from nano.labels import CHARACTERS, MOST_CHARACTERS, NOTHING
from nano.pictures import COLOURS, SHAPES

SLOTS = 2  # halves of a token: two characters stand side by side in it
LOSSES = ("character", "place", "shape", "colour", "spot")
NOTHING_THERE = 0.1  # how much a token without a character or shape weighs in the loss


class DenseHeads(nn.Module):
    """What stands in every token, read off the projected rows: the model learns to see before it is asked.

    Characters, shapes and colours are read with the decoder's own embeddings of their names, so that a picture of
    a red circle comes to look like the words: attention that finds words in text then finds things in pictures.
    """

    def __init__(self, hidden: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.names = {
            "character": torch.tensor([tokenizer.encode(c)[0] for c in CHARACTERS]),
            "shape": torch.tensor([tokenizer.encode(" " + s)[0] for s in SHAPES]),
            "colour": torch.tensor([tokenizer.encode(" " + c)[0] for c in COLOURS]),
        }
        self.scale = nn.Parameter(torch.tensor([hidden**-0.5 * 2] * len(self.names)))
        self.blank = nn.Linear(hidden, SLOTS + 1)  # no character in this half; no shape
        # The left half's character is spelled as it stands; the right half's in coordinates of its own.
        self.turn = nn.Linear(hidden, hidden, bias=False)
        self.place = nn.Linear(hidden, SLOTS * 2 * MOST_CHARACTERS)
        self.spot = nn.Linear(hidden, 2)

    def loss(self, rows: Tensor, labels: dict[str, Tensor], embeddings: Tensor) -> tuple[Tensor, dict[str, float]]:
        """rows (pictures*tokens, hidden); labels (pictures, tokens, ...); embeddings (vocabulary, hidden)."""
        labels = {name: value.flatten(0, 1) for name, value in labels.items()}
        x = F.rms_norm(rows, rows.shape[-1:])
        blank = self.blank(x)
        name = {k: self.scale[i] * embeddings[ids] for i, (k, ids) in enumerate(self.names.items())}
        halves = torch.stack((x, self.turn(x)), 1)  # (tokens, slots, hidden)
        character = torch.cat((blank[:, :SLOTS, None], halves @ name["character"].T), -1)
        shape = torch.cat((blank[:, SLOTS:], x @ name["shape"].T), -1)
        place = self.place(x).view(len(x), SLOTS, -1)
        seen = labels["shape"] > 0
        losses = {
            "character": weighted(character.flatten(0, 1), labels["character"].flatten()),
            "shape": weighted(shape, labels["shape"]),
        }
        if (labels["place"] >= 0).any():
            losses["place"] = F.cross_entropy(place.flatten(0, 1), labels["place"].flatten(), ignore_index=NOTHING)
        if seen.any():
            losses["colour"] = F.cross_entropy(x[seen] @ name["colour"].T, labels["colour"][seen])
            losses["spot"] = 100 * ((self.spot(x[seen]) - labels["spot"][seen]) ** 2).mean()
        there = labels["character"] > 0
        right = (character.argmax(-1) == labels["character"])[there]
        stats = {k: float(v.detach()) for k, v in losses.items()}
        stats["characters_right"] = float(right.float().mean()) if there.any() else math.nan
        stats["shapes_right"] = (
            float((shape.argmax(-1) == labels["shape"])[seen].float().mean()) if seen.any() else math.nan
        )
        return sum(losses.values(), torch.zeros(())), stats


def weighted(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in which class 0, nothing there, counts for little."""
    weight = torch.ones(logits.shape[-1])
    weight[0] = NOTHING_THERE
    return F.cross_entropy(logits, targets, weight=weight)
