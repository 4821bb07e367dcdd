"""Safetensors headers: which tensors lie where. Knows the file format; loads neither torch nor a value."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from kimi_serve.errors import CheckpointError

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
