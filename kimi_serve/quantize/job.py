"""Quantizes one checkpoint folder into another: the order of the steps. Knows files; never how a weight is rounded.

All is judged before the first weight is read. What is made lies in DST.partial until nothing is missing, and becomes
DST by one rename; stopped at any point, the same command goes on with the first shard that is not finished.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from kimi_serve.errors import QuantizeError
from kimi_serve.inputs.config import Checkpoint, load_checkpoint
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.quantize import layout, manifest, scheme
from kimi_serve.quantize.headers import INDEX, weight_files
from kimi_serve.quantize.layout import Shard
from kimi_serve.quantize.manifest import Manifest
from kimi_serve.quantize.options import Options
from kimi_serve.quantize.scheme import Scheme
from kimi_serve.quantize.source import Weights
from kimi_serve.quantize.writer import Quantizer, sync_folder, write_atomically

CONFIG = "config.json"
# Weights in other formats: an engine would read them in place of ours.
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
ROOM_TO_SPARE = 64 << 20  # bytes: file systems need some for themselves


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, judged."""

    options: Options
    checkpoint: Checkpoint
    weights: Weights
    scheme: Scheme
    shards: Sequence[Shard]
    copies: Sequence[Path]

    @property
    def folder(self) -> Path:
        """Where the output grows."""
        return self.options.target.with_name(f"{self.options.target.name}.partial")


def prepare(options: Options) -> Plan:
    """Read configuration and headers. Raise a KimiServeError for whatever can be known before work begins."""
    if not options.source.is_dir():
        raise QuantizeError(f"SRC: {options.source} is not a directory")
    check_places(options.source, options.target)
    checkpoint = load_checkpoint(options.source)
    if checkpoint.model.quantization is not None:
        method = checkpoint.model.quantization.get("quant_method")
        raise QuantizeError(f"SRC: {options.source} is already quantized (quant_method {method!r})")
    chosen = scheme.choose(
        checkpoint.model, options.scheme, options.group_size, lm_head=options.lm_head, tower=options.tower
    )
    weights = Weights(options.source)
    shards = layout.plan(weights.tensors, expected_tensors(checkpoint.model), chosen, options.shard_bytes)
    return Plan(options, checkpoint, weights, chosen, shards, files_to_copy(options.source))


def check_places(source: Path, target: Path) -> None:
    here, there = source.resolve(), target.resolve()
    if there == here or here in there.parents or there in here.parents:
        raise QuantizeError(f"DST: {target} and SRC {source} lie inside each other; choose a directory elsewhere")
    if target.exists() and not target.is_dir():
        raise QuantizeError(f"DST: {target} is a file; expected a directory that does not exist")


def files_to_copy(source: Path) -> list[Path]:
    """Tokenizer, configurations, card: the visible files beside the weights."""
    return sorted(
        path
        for path in source.iterdir()
        if path.is_file()
        and path.suffix not in OTHER_WEIGHTS
        and path.name not in (CONFIG, INDEX, manifest.NAME)
        and not path.name.startswith(".")
        and not path.name.endswith(".bin.index.json")
    )


def make(plan: Plan, importance: Mapping[str, Tensor], done: Manifest) -> None:
    """Write what is missing in the plan's folder."""
    due = [shard for shard in plan.shards if shard.file not in done.finished]
    total = sum(_source_bytes(shard) for shard in plan.shards)
    often = 0.1 if sys.stderr.isatty() else 30.0  # seconds: a log wants few lines
    bar = tqdm(total=total, unit="B", unit_scale=True, desc="quantizing", mininterval=often)
    bar.update(total - sum(_source_bytes(shard) for shard in due))
    with bar, plan.weights, Quantizer(plan.weights, importance, bar.update) as quantizer:
        for shard in due:
            done.add(shard.file, quantizer.write(plan.folder, shard))


def finish(plan: Plan, done: Manifest) -> None:
    """Add the other files, and let the output appear under its name."""
    folder = plan.folder
    if source_state(plan.options.source) != done.made_from["source"]:
        raise QuantizeError(f"SRC: {plan.options.source} changed while it was read; delete {folder} and begin again")
    config = load_config(plan.options.source)
    config["quantization_config"] = scheme.config_section(plan.scheme)
    _write_json(folder / CONFIG, config)
    _write_json(folder / INDEX, layout.index(plan.shards))
    for path in plan.copies:
        write_atomically(folder / path.name, iter([path.read_bytes()]))
    shards = [shard.file for shard in plan.shards]
    done.keep(shards)
    keep = {CONFIG, INDEX, manifest.NAME, *shards, *(path.name for path in plan.copies)}
    for path in folder.iterdir():
        if path.name not in keep:
            path.unlink()
    folder.rename(plan.options.target)
    sync_folder(plan.options.target.parent)


def check_room(plan: Plan, done: Manifest) -> None:
    need = sum(shard.nbytes for shard in plan.shards if shard.file not in done.finished)
    need += sum(path.stat().st_size for path in plan.copies) + ROOM_TO_SPARE
    refuse_without_room(plan.folder, need, shutil.disk_usage(plan.folder).free)


def refuse_without_room(where: Path, need: int, free: int) -> None:
    if free < need:
        raise QuantizeError(f"DST: {where} needs {need / 1e9:.2f} GB more; its disk has {free / 1e9:.2f} GB free")


def made_from(plan: Plan, calibration: str | None) -> dict[str, object]:
    """Everything that the output's bytes depend on."""
    options = plan.options
    return {
        "revision": manifest.REVISION,
        "scheme": options.scheme,
        "group_size": plan.scheme.decoder.group_size,
        "lm_head": options.lm_head,
        "tower": options.tower,
        "calibration": calibration,
        "shard_bytes": options.shard_bytes,
        "source": source_state(options.source),
    }


def source_state(source: Path) -> dict[str, list[int]]:
    """Size and time of every file that is read."""
    paths = [source / file for file in (CONFIG, *weight_files(source))]
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in paths}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make the folder and hold it against a second run. The lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise QuantizeError(f"{folder}: another kimi-serve quantize is writing there") from None
        yield
    finally:
        os.close(descriptor)
        if folder.is_dir() and not any(folder.iterdir()):  # refused before anything was written
            folder.rmdir()


def load_config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config


def _source_bytes(shard: Shard) -> int:
    return sum(task.source.nbytes for task in shard.tasks)


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, iter([f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode()]))
