"""Safetensors files, read a few rows at a time. Knows the file format; never what a tensor is for.

Headers are read and judged first. Values are read with pread into memory that is freed after use: a mapped file of
33 GB would count as this process's memory.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeGuard

import torch

from kimi_serve.errors import CheckpointError

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
}
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I8": 1, "I32": 4, "I64": 8}
INDEX = "model.safetensors.index.json"
MAX_HEADER = 100 << 20  # the format's own limit


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int  # of its first byte in the file

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


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


def weight_files(directory: Path) -> list[str]:
    """The files that the index names; without an index, all of them."""
    index = directory / INDEX
    if index.exists():
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index}: cannot be read as an index of weights: {error!r}") from error
        if missing := sorted(file for file in files if not (directory / file).is_file()):
            raise CheckpointError(f"{index}: names {missing[0]}, which is not there")
        return sorted(files)
    files = {path.name for path in directory.glob("*.safetensors")}
    if not files:
        raise CheckpointError(f"{directory}: holds no *.safetensors file")
    return sorted(files)


def read_header(path: Path) -> list[Stored]:
    """Raise CheckpointError for a file that is cut short or is no safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise CheckpointError(f"{path}: is no safetensors file: its header would be {length} of {size} bytes")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise CheckpointError(f"{path}: its header is not JSON: {error}") from error
    tensors = [_entry(path, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    for tensor in tensors:
        if tensor.offset + tensor.nbytes > size:
            end = tensor.offset + tensor.nbytes
            raise CheckpointError(f"{path}: tensor {tensor.name!r} ends at byte {end}; the file has {size}")
    return tensors


def _entry(path: Path, name: str, entry: Mapping[str, object], base: int) -> Stored:
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype}; supported: {', '.join(SIZES)}")
    if not _are_integers(shape) or not _are_integers(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: tensor {name!r} has shape {shape} and offsets {offsets}; expected integers")
    tensor = Stored(name, dtype, tuple(shape), path.name, base + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        taken = offsets[1] - offsets[0]
        raise CheckpointError(f"{path}: tensor {name!r} takes {taken} bytes; {dtype} {shape} needs {tensor.nbytes}")
    return tensor


def _are_integers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(each, int) and each >= 0 for each in value)
