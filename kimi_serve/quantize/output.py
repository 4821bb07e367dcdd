"""The folder that an output grows in, and how it becomes complete. Knows files and names; never a tensor's meaning.

What is made lies in DST.partial until nothing is missing, and becomes DST by one rename.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from kimi_serve.errors import QuantizeError
from kimi_serve.inputs.headers import INDEX, weight_files
from kimi_serve.quantize import layout
from kimi_serve.quantize.layout import Shard
from kimi_serve.quantize.manifest import Manifest
from kimi_serve.quantize.writer import sync_folder, write_atomically

CONFIG = "config.json"
# Weights in other formats: an engine would read them in place of ours.
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
# Of folders that were made here: what they say is not true of the next one.
MANIFESTS = ("quantization_manifest.json", "merge_manifest.json")
ROOM_TO_SPARE = 64 << 20  # bytes: file systems need some for themselves


def partial(target: Path) -> Path:
    """Where the output grows."""
    return target.with_name(f"{target.name}.partial")


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
        and path.name not in (CONFIG, INDEX, *MANIFESTS)
        and not path.name.startswith(".")
        and not path.name.endswith(".bin.index.json")
    )


def check_room(where: Path, shards: Sequence[Shard], copies: Sequence[Path], done: Manifest) -> None:
    need = sum(shard.nbytes for shard in due(shards, done))
    need += sum(path.stat().st_size for path in copies) + ROOM_TO_SPARE
    refuse_without_room(where, need, shutil.disk_usage(where).free)


def refuse_without_room(where: Path, need: int, free: int) -> None:
    if free < need:
        raise QuantizeError(f"DST: {where} needs {need / 1e9:.2f} GB more; its disk has {free / 1e9:.2f} GB free")


def due(shards: Sequence[Shard], done: Manifest) -> list[Shard]:
    return [shard for shard in shards if shard.file not in done.finished]


def progress(shards: Sequence[Shard], done: Manifest, title: str) -> "tqdm[None]":
    """A bar over the source's bytes, those of finished shards already counted."""
    total = sum(shard.source_bytes for shard in shards)
    often = 0.1 if sys.stderr.isatty() else 30.0  # seconds: a log wants few lines
    bar = tqdm(total=total, unit="B", unit_scale=True, desc=title, mininterval=often)
    bar.update(total - sum(shard.source_bytes for shard in due(shards, done)))
    return bar


def complete(
    target: Path, shards: Sequence[Shard], config: Mapping[str, object], copies: Sequence[Path], done: Manifest
) -> None:
    """Add the other files, and let the output appear under its name."""
    folder, files = partial(target), [shard.file for shard in shards]
    _write_json(folder / CONFIG, config)
    _write_json(folder / INDEX, layout.index(shards))
    for path in copies:
        write_atomically(folder / path.name, iter([path.read_bytes()]))
    done.keep(files)
    keep = {CONFIG, INDEX, done.name, *files, *(path.name for path in copies)}
    for path in folder.iterdir():
        if path.name not in keep:
            path.unlink()
    folder.rename(target)
    sync_folder(target.parent)


@contextmanager
def resumable() -> Iterator[None]:
    """Say what an end on the way means."""
    try:
        yield
    except KeyboardInterrupt:
        raise QuantizeError("stopped; what is finished is kept: run the same command again to go on") from None
    except OSError as error:  # a disk that is full after all, a folder that may not be written
        raise QuantizeError(f"{error}; what is finished is kept: run the same command again to go on") from error


def source_state(source: Path) -> dict[str, list[int]]:
    """Size and time of every file of a checkpoint that is read."""
    return state_of([source / file for file in (CONFIG, *weight_files(source))])


def state_of(paths: Sequence[Path]) -> dict[str, list[int]]:
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
            raise QuantizeError(f"{folder}: another process is writing there") from None
        yield
    finally:
        os.close(descriptor)
        if folder.is_dir() and not any(folder.iterdir()):  # refused before anything was written
            folder.rmdir()


def load_config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return config


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, iter([f"{json.dumps(value, indent=2, ensure_ascii=False)}\n".encode()]))
