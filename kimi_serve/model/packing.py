"""Where each image of a pass lies, and how its queries and keys turn. Knows grids; never a pixel or a weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from kimi_serve.inputs.geometry import Grid

ROPE_THETA = 10000.0  # a constant of the published tower: no checkpoint file states it


@dataclass(frozen=True, slots=True)
class Run:
    """Images of one grid, side by side."""

    grid: Grid
    images: int
    rows: slice  # of the packed patches


def runs(grids: Sequence[Grid]) -> list[Run]:
    found, begin = [], 0
    for grid, same in groupby(grids):
        images = len(list(same))
        end = begin + images * grid.num_patches
        found.append(Run(grid, images, slice(begin, end)))
        begin = end
    return found


class Packing:
    """Of one pass: computed once, used by every block."""

    def __init__(self, grids: Sequence[Grid], head_dim: int, device: torch.device, feed: int) -> None:
        self.feed = feed  # patches that go through a feed-forward layer at a time
        lengths = torch.tensor([grid.num_patches for grid in grids], dtype=torch.int32)
        self.cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)).to(device)
        self.max_seqlen = lengths.max()  # on the host: attention kernels take it as an integer
        self.runs = runs(grids)
        self.turns = torch.cat([turns(run.grid, head_dim, device).repeat(run.images, 1) for run in self.runs])


def turns(grid: Grid, head_dim: int, device: torch.device) -> Tensor:
    """The 2-D rotary turns of an image's patches, (h*w, head_dim/2) complex64.

    Pair 2j turns with the column, pair 2j+1 with the row (the published docstring says the opposite of what its code
    does). Computed for the grids at hand: nothing of the size of the largest image is kept.
    """
    step = torch.arange(0, head_dim, 4, device=device, dtype=torch.float32)[: head_dim // 4]
    freqs = ROPE_THETA ** -(step / head_dim)  # (head_dim/4,)
    rows = torch.arange(grid.height, device=device, dtype=torch.float32).repeat_interleave(grid.width)
    cols = torch.arange(grid.width, device=device, dtype=torch.float32).repeat(grid.height)
    angles = torch.stack([torch.outer(cols, freqs), torch.outer(rows, freqs)], dim=-1).flatten(1)  # (h*w, head_dim/2)
    return torch.polar(torch.ones_like(angles), angles)


def turn(x: Tensor, by: Tensor) -> Tensor:
    """Turn adjacent pairs of the last axis, in float32, which is turned in place.

    x is (L, heads, head_dim), `by` (L, head_dim/2).
    """
    if x.dtype == torch.float32:
        _pairs(x).mul_(by.unsqueeze(1))
        return x
    return torch.view_as_real(_pairs(x.float()) * by.unsqueeze(1)).flatten(-2).to(x.dtype)


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # (L, heads, head_dim/2)
