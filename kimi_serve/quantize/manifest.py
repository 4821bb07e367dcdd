"""What is done so far and from what: the file that a stopped run resumes from. Knows hashes; never a tensor."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kimi_serve.errors import QuantizeError
from kimi_serve.quantize.writer import write_atomically

NAME = "quantization_manifest.json"
REVISION = 1  # raise it where the same input would no longer give the same bytes


@dataclass(slots=True)
class Manifest:
    """`made_from` says what the bytes depend on; `finished` holds the sha256 of each finished file."""

    folder: Path
    name: str
    made_from: Mapping[str, object]
    finished: dict[str, str] = field(default_factory=dict)

    def add(self, file: str, sha256: str) -> None:
        self.finished[file] = sha256
        self._write()

    def keep(self, files: Sequence[str]) -> None:
        """Forget what only the work needed."""
        self.finished = {file: self.finished[file] for file in files}
        self._write()

    def _write(self) -> None:
        text = json.dumps({"made_from": self.made_from, "finished": self.finished}, indent=1)
        write_atomically(self.folder / self.name, iter([f"{text}\n".encode()]))

    def forget_broken(self) -> None:
        """Drop what is not on disk as it was written."""
        for file, sha256 in list(self.finished.items()):
            path = self.folder / file
            if not path.is_file() or sha256_of(path) != sha256:
                del self.finished[file]


def resume(folder: Path, made_from: Mapping[str, object], name: str = NAME) -> Manifest:
    """Return the manifest of `folder`, or a new one. Raise QuantizeError where it began from something else."""
    path = folder / name
    if not path.exists():
        return Manifest(folder, name, made_from)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        before, finished = dict(stored["made_from"]), dict(stored["finished"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuantizeError(f"{path}: cannot be read: {error!r}; delete {folder} to begin again") from error
    now = json.loads(json.dumps(made_from))  # as a file would give it back
    for key in now | before:
        if before.get(key) != now.get(key):
            raise QuantizeError(
                f"{folder}: was begun with another {key} ({_short(before.get(key))}, now {_short(now.get(key))}); "
                "delete it to begin again"
            )
    manifest = Manifest(folder, name, made_from, finished)
    manifest.forget_broken()
    return manifest


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
