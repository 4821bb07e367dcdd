"""Where training starts: a tower that can already look around. Knows the oracle's parameters; trains nothing."""

from __future__ import annotations

import base64
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nano.labels import patchify
from nano.pictures import Style
from nano.scenes import shape_scene, text_scene
from tests.oracle.kimi_vl import KimiVl
from tests.oracle.moonvit import Block

# Which neighbour (columns, rows) each head looks at in the first blocks: strokes continue in the next patch.
NEIGHBOURS = (((-1, 0), (1, 0)), ((0, -1), (0, 1)), ((-1, 0), (1, 0)), ((-2, 0), (2, 0)))
SHARPNESS = 4.9
PICTURES = 400  # whose patches are whitened


def initialise(model: KimiVl, style: Style, seed: int) -> None:
    """Fresh weights that learn in fewer steps than random ones: time is what a small machine lacks."""
    decoder = model.language_model
    nn.init.normal_(decoder.model.embed_tokens.weight, std=0.3)
    nn.init.normal_(decoder.lm_head.weight, std=0.02)
    tower = model.vision_tower
    with torch.no_grad():
        whiten(tower.patch_embed.proj, sample_patches(style, seed))
        tower.patch_embed.pos_emb.weight.copy_(smooth_table(*tower.patch_embed.pos_emb.weight.shape))
        for block, neighbours in zip(tower.encoder.blocks, NEIGHBOURS, strict=False):
            assert isinstance(block, Block)
            look_at(block, neighbours)
            damp(block)


def carry_over(weights: dict[str, Tensor], old_folder: Path, new: KimiVl, new_folder: Path) -> None:
    """The weights of another run. A token of the new vocabulary keeps the rows that it had in the old one; layers of
    another shape start afresh, all of them: half a decoder is none."""
    fresh = new.state_dict()
    layers = {name for name in fresh if name.startswith("language_model.model.layers.")}
    if {name: fresh[name].shape for name in layers} != {
        n: t.shape for n, t in weights.items() if ".model.layers." in n
    }:
        weights = {n: t for n, t in weights.items() if ".model.layers." not in n} | {n: fresh[n] for n in layers}
    was, now = rows_of(old_folder), rows_of(new_folder)
    kept = [token for token in now if token in was]
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        table = fresh[name].clone()
        table[[now[t] for t in kept]] = weights[name][[was[t] for t in kept]]
        weights[name] = table
    new.load_state_dict(weights)


def rows_of(folder: Path) -> dict[bytes | int, int]:
    """Token bytes, or a special token's number, -> row of the embedding."""
    lines = (folder / "tiktoken.model").read_text().splitlines()
    rows: dict[bytes | int, int] = {base64.b64decode(line.split()[0]): k for k, line in enumerate(lines)}
    return rows | {k: len(lines) + k for k in range(256)}


def sample_patches(style: Style, seed: int) -> Tensor:
    """(patches, 3*14*14) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    pictures = [(text_scene if k % 3 else shape_scene)(112, 84, rng, style) for k in range(PICTURES)]
    patches = np.concatenate([patchify(p.pixels) for p in pictures])
    return torch.from_numpy(patches).flatten(1).float() / 127.5 - 1


def whiten(proj: nn.Conv2d, patches: Tensor) -> None:
    """Principal directions of real patches, evened out: no detail starts out invisible."""
    mean = patches.mean(0)
    centred = patches - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(patches))
    count = proj.weight.shape[0]
    weight = 0.7 * (vectors.flip(1)[:, :count] / (values.flip(0)[:count] + 0.03).sqrt()).T
    proj.weight.copy_(weight.view_as(proj.weight))
    assert proj.bias is not None
    proj.bias.copy_(-weight @ mean)


def smooth_table(height: int, width: int, hidden: int) -> Tensor:
    """Cosines of few periods: stretching the table to a small grid keeps what it says."""
    ys = (torch.arange(height) + 0.5) / height
    xs = (torch.arange(width) + 0.5) / width
    waves = [(u, v) for u in range(6) for v in range(6)]
    planes = [torch.outer((math.pi * v * ys).cos(), (math.pi * u * xs).cos()) for u, v in waves]
    return 0.3 * torch.stack([planes[k % len(planes)] for k in range(hidden)], -1)


def look_at(block: Block, neighbours: tuple[tuple[int, int], ...]) -> None:
    """Query and key biases whose rotary phases agree at one offset: each head starts on one neighbour."""
    bias = block.wqkv.bias
    size = bias.shape[0] // 3
    head = size // block.heads
    bias.zero_()
    for index, (dx, dy) in enumerate(neighbours[: block.heads]):
        query, key = torch.zeros(head // 2, 2), torch.zeros(head // 2, 2)
        for j in range(4):
            frequency = 10000.0 ** (-4 * j / head)
            for pair, offset in ((2 * j, dx), (2 * j + 1, dy)):
                key[pair, 0] = SHARPNESS
                query[pair] = SHARPNESS * torch.tensor([math.cos(frequency * offset), math.sin(frequency * offset)])
        bias[index * head : (index + 1) * head] = query.flatten()
        bias[size + index * head : size + (index + 1) * head] = key.flatten()


def damp(block: Block) -> None:
    """Small residual branches at first."""
    nn.init.normal_(block.wo.weight, std=0.3 * block.wo.in_features**-0.5)
    nn.init.normal_(block.mlp.fc1.weight, std=0.3 * block.mlp.fc1.in_features**-0.5)
