"""Adds the products of an adapter to weights, a few rows at a time. Knows values; never a file's name or its place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kimi_serve.errors import AdapterError
from kimi_serve.inputs.adapter import Adapter, Pair
from kimi_serve.quantize.layout import Shard, header
from kimi_serve.quantize.source import Weights

BLOCK = 1 << 20  # values at a time: 8 MB in float64

Progress = Callable[[int], object]  # told how many bytes of the base are done


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one tensor, and what they were in the base."""

    before: Tensor
    after: Tensor


class Merger:
    """W + scale * B @ A, in float64 and rounded once to the type that the base stores."""

    def __init__(self, base: Weights, deltas: Weights, adapter: Adapter) -> None:
        self.base = base
        self.deltas = deltas
        self.adapter = adapter

    def content(self, shard: Shard, progress: Progress) -> Iterator[bytes | memoryview]:
        """The bytes of a file."""
        yield header(shard.outputs)
        for task in shard.tasks:
            for block in self.blocks(task.source.name):
                yield memoryview(block.after.contiguous().view(-1).view(torch.uint8).numpy())  # numpy has no bfloat16
                progress(block.before.nbytes)

    def pair_of(self, name: str) -> Pair | None:
        return self.adapter.pairs.get(name.removesuffix(".weight"))

    def blocks(self, name: str) -> Iterator[Block]:
        """A tensor of the base, in order; one that no pair is for comes as it is."""
        rows, *rest = self.base.tensors[name].shape
        pair, step = self.pair_of(name), max(1, BLOCK // max(torch.Size(rest).numel(), 1))
        right = None if pair is None else self.deltas.rows(pair.a.name).double()  # (rank, in)
        for start in range(0, rows, step):
            before = self.base.rows(name, start, min(start + step, rows))
            yield Block(before, before if pair is None else self._sum(pair, before, right, start))

    def _sum(self, pair: Pair, before: Tensor, right: Tensor | None, start: int) -> Tensor:
        assert right is not None
        left = self.deltas.rows(pair.b.name, start, start + len(before)).double()  # (rows, rank)
        after = (before.double() + pair.scale * (left @ right)).to(before.dtype)
        if not after.isfinite().all():
            raise AdapterError(
                f"{pair.module}, rows {start} to {start + len(before) - 1}: the sum with the adapter is not finite in "
                f"{before.dtype}"
            )
        return after
