"""What will be written: every output tensor, its file and its place. Knows shapes and bytes; never a value."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kimi_serve.errors import CheckpointError
from kimi_serve.inputs.headers import SIZES, Stored
from kimi_serve.inputs.tensors import Shape
from kimi_serve.quantize.scheme import Format, Scheme

FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class Output:
    name: str
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Task:
    """One tensor of the source and what becomes of it."""

    source: Stored
    format: Format | None  # None: it is copied
    outputs: tuple[Output, ...]

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Shard:
    file: str
    tasks: tuple[Task, ...]

    @property
    def outputs(self) -> list[Output]:
        return [output for task in self.tasks for output in task.outputs]

    @property
    def nbytes(self) -> int:
        return len(header(self.outputs)) + sum(task.nbytes for task in self.tasks)

    @property
    def source_bytes(self) -> int:
        return sum(task.source.nbytes for task in self.tasks)


def plan(stored: Mapping[str, Stored], expected: Mapping[str, Shape], scheme: Scheme, most: int) -> list[Shard]:
    """What becomes of each tensor, in the model's order."""
    check_complete(stored, expected)
    return split([task_for(stored[name], scheme.format_of(name)) for name in expected], most)


def split(tasks: Sequence[Task], most: int) -> list[Shard]:
    """Shards of at most `most` bytes of tensors; a larger tensor has its own."""
    parts: list[list[Task]] = [[]]
    filled = 0
    for task in tasks:
        if parts[-1] and filled + task.nbytes > most:
            parts.append([])
            filled = 0
        parts[-1].append(task)
        filled += task.nbytes
    return [
        Shard(f"model-{number:05d}-of-{len(parts):05d}.safetensors", tuple(part))
        for number, part in enumerate(parts, 1)
    ]


def check_complete(stored: Mapping[str, Stored], expected: Mapping[str, Shape]) -> None:
    """Raise CheckpointError for the first tensor that is missing, unexpected, mis-shaped or no float."""
    if missing := [name for name in expected if name not in stored]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"missing from the checkpoint: {', '.join(missing[:3])}{more}")
    for name, tensor in stored.items():
        if name not in expected:
            raise CheckpointError(f"unexpected tensor {name!r}: the configuration has no place for it")
        if tensor.shape != expected[name]:
            raise CheckpointError(f"tensor {name!r} has shape {tensor.shape}; the configuration says {expected[name]}")
        if tensor.dtype not in FLOATS:
            raise CheckpointError(f"tensor {name!r} has dtype {tensor.dtype}; supported: {', '.join(FLOATS)}")


def task_for(tensor: Stored, form: Format | None) -> Task:
    if form is None:
        return Task(tensor, None, (Output(tensor.name, tensor.dtype, tensor.shape),))
    rows, width = tensor.shape
    scale = Output(f"{tensor.name}_scale", scale_dtype(tensor, form), (rows, form.groups(width)))
    if form.bits == 8:
        return Task(tensor, form, (Output(tensor.name, "I8", tensor.shape), scale))
    packed = Output(f"{tensor.name}_packed", "I32", (rows, width // 8))
    return Task(tensor, form, (packed, scale, Output(f"{tensor.name}_shape", "I64", (2,))))


def scale_dtype(tensor: Stored, form: Format) -> str:
    """vLLM keeps int8's scales in float32, and int4's in the model's own type."""
    return "F32" if form.bits == 8 else tensor.dtype


def header(outputs: Sequence[Output]) -> bytes:
    """The first bytes of a safetensors file with these tensors in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for output in outputs:
        entries[output.name] = {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "data_offsets": [at, at + output.nbytes],
        }
        at += output.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns what follows
    return len(text).to_bytes(8, "little") + text


def index(shards: Sequence[Shard]) -> dict[str, object]:
    """The content of model.safetensors.index.json."""
    outputs = [(output, shard.file) for shard in shards for output in shard.outputs]
    return {
        "metadata": {"total_size": sum(output.nbytes for output, _ in outputs)},
        "weight_map": {output.name: file for output, file in outputs},
    }
