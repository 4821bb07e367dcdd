"""Values of safetensors files, read a few rows at a time. Knows bytes; never what a tensor is for.

Headers are read and judged first. Values are read with pread into memory that is freed after use: a mapped file of
33 GB would count as this process's memory.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from kimi_serve.errors import CheckpointError
from kimi_serve.inputs.headers import Stored, read_header, weight_files

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}


class Weights:
    """The tensors of one checkpoint folder; a context manager, which holds its files open."""

    def __init__(self, directory: Path, files: Sequence[str] | None = None) -> None:
        self.directory = directory
        self.tensors: dict[str, Stored] = {}
        for file in weight_files(directory) if files is None else files:
            for tensor in read_header(directory / file):
                if tensor.name in self.tensors:
                    raise CheckpointError(
                        f"tensor {tensor.name!r} is in {self.tensors[tensor.name].file} and again in {file}"
                    )
                self.tensors[tensor.name] = tensor
        self._open: dict[str, int] = {}

    def __enter__(self) -> Self:
        for file in {tensor.file for tensor in self.tensors.values()}:
            self._open[file] = os.open(self.directory / file, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of a tensor, as stored. Threads may call it at the same time."""
        tensor = self.tensors[name]
        stop = tensor.shape[0] if stop is None else stop
        row = tensor.nbytes // max(tensor.shape[0], 1)
        data = self._read(tensor, start * row, (stop - start) * row)
        return torch.frombuffer(data, dtype=DTYPES[tensor.dtype]).view(stop - start, *tensor.shape[1:])

    def chunks(self, name: str, size: int) -> Iterator[bytearray]:
        """The bytes of a tensor in order."""
        tensor = self.tensors[name]
        for start in range(0, tensor.nbytes, size):
            yield self._read(tensor, start, min(size, tensor.nbytes - start))

    def _read(self, tensor: Stored, start: int, count: int) -> bytearray:
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            got = os.preadv(self._open[tensor.file], [view[done:]], tensor.offset + start + done)
            if got == 0:
                raise CheckpointError(f"{tensor.file}: ended while tensor {tensor.name!r} was read")
            done += got
        return data
