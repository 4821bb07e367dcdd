"""Integers as compressed-tensors stores them, and back. Knows bits; never how a scale was chosen."""

import torch
from torch import Tensor


def pack(integers: Tensor) -> Tensor:
    """(rows, width) int8 of -8..7 -> (rows, width/8) int32: value k of eight in bits 4k, eight added to it."""
    nibbles = (integers + 8).to(torch.uint8)
    pairs = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return pairs.contiguous().view(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`."""
    pairs = packed.contiguous().view(torch.uint8)
    nibbles = torch.stack((pairs & 15, pairs >> 4), -1).flatten(1)
    return nibbles.to(torch.int8) - 8


def dequantize(integers: Tensor, scale: Tensor) -> Tensor:
    """(rows, width) int8 and (rows, groups) -> (rows, width) in the scale's type, as loaders compute it."""
    rows, width = integers.shape
    grouped = integers.view(rows, scale.shape[1], -1).to(scale.dtype)
    return (grouped * scale.unsqueeze(-1)).view(rows, width)
