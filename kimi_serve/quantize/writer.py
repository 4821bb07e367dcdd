"""Writes output files, each complete or not there at all. Knows shards and bytes; never which of them are due."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from kimi_serve.errors import CheckpointError
from kimi_serve.quantize.layout import Output, Shard, Task, header
from kimi_serve.quantize.packing import pack
from kimi_serve.quantize.scales import quantize
from kimi_serve.quantize.source import DTYPES, Weights

BLOCK = 1 << 17  # values that one thread works on at a time: they and their copies stay in its cache
CHUNK = 16 << 20  # bytes copied at a time

Progress = Callable[[int], object]  # told how many bytes of the source are done


class Quantizer:
    """Quantizes tensors block by block on all cores; a context manager, which ends its threads."""

    def __init__(self, weights: Weights, importance: Mapping[str, Tensor], progress: Progress) -> None:
        self.weights = weights
        self.importance = importance
        self.progress = progress
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)  # the threads' own setting reaches some libraries as a whole

    def write(self, folder: Path, shard: Shard) -> str:
        """Write one shard; the sha256 of its bytes."""
        return write_atomically(folder / shard.file, self._content(shard))

    def _content(self, shard: Shard) -> Iterator[bytes | bytearray | memoryview]:
        yield header(shard.outputs)
        for task in shard.tasks:
            if task.format is None:
                for chunk in self.weights.chunks(task.source.name, CHUNK):
                    yield chunk
                    self.progress(len(chunk))
            else:
                for tensor in self.quantized(task):
                    yield memoryview(tensor.view(torch.uint8).numpy()).cast("B")  # numpy has no bfloat16

    def quantized(self, task: Task) -> list[Tensor]:
        """Return the output tensors of a task, in order."""
        assert task.format is not None
        outputs = [torch.empty(output.shape, dtype=DTYPES[output.dtype]) for output in task.outputs]
        if len(outputs) == 3:
            outputs[2].copy_(torch.tensor(task.source.shape))
        rows, width = task.source.shape
        block = max(1, BLOCK // width)
        starts = range(0, rows, block)
        list(self._pool.map(lambda start: self._block(task, start, min(start + block, rows), outputs), starts))
        return outputs

    def _block(self, task: Task, start: int, stop: int, outputs: list[Tensor]) -> None:
        name, form = task.source.name, task.format
        assert form is not None
        rows = self.weights.rows(name, start, stop)
        try:
            integers, scale = quantize(rows, form, outputs[1].dtype, self.importance.get(name))
        except ValueError as error:
            raise CheckpointError(f"tensor {name!r}, rows {start} to {stop - 1}: {error}") from error
        outputs[0][start:stop] = pack(integers) if form.bits == 4 else integers
        outputs[1][start:stop] = scale
        self.progress(rows.nbytes)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write float32 tensors as one safetensors file; the sha256 of its bytes."""
    outputs = [Output(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    parts = (memoryview(tensor.contiguous().numpy()).cast("B") for tensor in tensors.values())
    return write_atomically(path, iter([header(outputs), *parts]))


def write_atomically(path: Path, content: Iterator[bytes | bytearray | memoryview]) -> str:
    """Write to a neighbour, make it durable, rename; the sha256. A reader sees all of the file or none."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    digest = hashlib.sha256()
    with unfinished.open("wb") as file:
        for part in content:
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    sync_folder(path.parent)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
