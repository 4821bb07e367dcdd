"""Training-only teachers of the decoder: where to look, and what to carry along. Knows layers; exported nowhere.

Answers alone are a thin signal: 2,000 steps moved neither pointing nor telling several pictures apart from chance.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano.batches import Batch
from tests.oracle.decoder import Attention, Layer, rope_table
from tests.oracle.kimi_vl import KimiVl
from tests.oracle.moonvit import rotate

MOST_IMAGES = 8
HEAD, COUNTING = 0, 1  # of the looking layer: one looks at what is asked about, one at all that is to be counted
LOOKING, ORDER, SAYING = 0.3, 0.3, 10.0  # weights of the losses


class Guides(nn.Module):
    """Losses on the layers between: the third looks, so the second knows which picture a token is of."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.image = nn.Linear(hidden, MOST_IMAGES)
        self.value = nn.Linear(hidden, 3)  # x, y, count

    def hidden(self, model: KimiVl, ids: Tensor, rows: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """What the model's own `hidden` gives, and the input of every layer."""
        inputs: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
            inputs.append(given[0])

        hooks = [layer.register_forward_pre_hook(keep) for layer in model.language_model.model.layers]
        try:
            return model.hidden(ids, rows), inputs
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, model: KimiVl, batch: Batch, inputs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        layers = model.language_model.model.layers
        looking = len(layers) - 2
        losses: dict[str, Tensor] = {}
        stats: dict[str, float] = {}
        images = torch.from_numpy(batch.images)
        if (images > 0).any():  # several pictures in a prompt
            x = F.rms_norm(inputs[looking], inputs[looking].shape[-1:])[images >= 0]
            losses["order"] = ORDER * F.cross_entropy(self.image(x), images[images >= 0])
        looks = torch.from_numpy(batch.looks)
        layer = layers[looking]
        assert isinstance(layer, Layer)
        if batch.among:
            asking, shares = counting(batch)
            logits = scores(layer.self_attn, layer.input_layernorm(inputs[looking]), asking, COUNTING)
            losses["counting"] = LOOKING * F.cross_entropy(logits, shares)
        if (looks >= 0).any():
            logits = scores(layer.self_attn, layer.input_layernorm(inputs[looking]), looks >= 0, HEAD)
            targets = looks[looks >= 0]
            losses["looking"] = LOOKING * F.cross_entropy(logits, targets)
            stats["looking_right"] = float((logits.argmax(-1) == targets).float().mean())
        values = torch.from_numpy(batch.values)
        known = ~values.isnan()
        if known.any():
            x = F.rms_norm(inputs[looking + 1], inputs[looking + 1].shape[-1:])
            losses["saying"] = SAYING * ((self.value(x) - values)[known] ** 2).mean()
        stats |= {name: float(value.detach()) for name, value in losses.items()}
        return sum(losses.values(), torch.zeros(())), stats


def counting(batch: Batch) -> tuple[Tensor, Tensor]:
    """Where counts are about to be said, and how attention is shared there: alike between what is counted and the
    first token, whose share then tells how many there are."""
    asking = torch.zeros(batch.ids.shape, dtype=torch.bool)
    shares = []
    for row, position, counted in sorted(batch.among):
        asking[row, position] = True
        share = torch.zeros(batch.ids.shape[1])
        share[[0, *counted]] = 1 / (len(counted) + 1)
        shares.append(share)
    return asking, torch.stack(shares)


def scores(attention: Attention, x: Tensor, asking: Tensor, head: int) -> Tensor:
    """Scores of one head as the layer itself has them, (asking tokens, length). x: (batch, length, hidden)."""
    s = attention.shape
    length = x.shape[1]
    cos, sin = rope_table(length, s.rope, s.theta)
    wide, both = s.nope + s.rope, s.nope + s.value
    q = F.linear(x, attention.q_proj.weight[head * wide : (head + 1) * wide])
    latent, k_rope = attention.kv_a_proj_with_mqa(x).split((s.kv_rank, s.rope), -1)
    k_nope = F.linear(attention.kv_a_layernorm(latent), attention.kv_b_proj.weight[head * both : head * both + s.nope])
    q = torch.cat((q[..., : s.nope], rotate(q[..., s.nope :], cos, sin)), -1)
    k = torch.cat((k_nope, rotate(k_rope, cos, sin)), -1)
    logits = (q @ k.transpose(1, 2) * wide**-0.5)[asking]
    return logits.masked_fill(torch.arange(length) > asking.nonzero()[:, 1:], -torch.inf)
