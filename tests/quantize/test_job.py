"""A run from its first step to the rename, and stopped on the way. Real files, real signals, real processes."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kimi_serve.errors import QuantizeError
from kimi_serve.quantize import command, manifest
from kimi_serve.quantize.options import Options
from tests.quantize.large import growth, widen

SMALL = 10_000  # bytes of a shard: the tiny checkpoint then has more than a dozen
KILLS_EACH, SEED = 2, 20260101
ROOT = Path(__file__).parents[2]


def content(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def shards(directory: Path) -> int:
    return len(list(directory.glob("model-*.safetensors")))


@contextmanager
def interrupted_after(partial: Path, count: int) -> Iterator[None]:
    """Press Ctrl-C as soon as so many shards are finished."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if shards(partial) >= count:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.0005)

    def stop(*_: object) -> None:
        if not over.is_set():
            raise KeyboardInterrupt

    watcher, handler = threading.Thread(target=watch), signal.signal(signal.SIGINT, stop)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGINT, handler)


# The signal may fall between a file's opening and its `with`: Python then closes it later, with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("count", [1, 4, 8])
def test_stopped_by_ctrl_c_the_same_command_goes_on_to_the_same_bytes(tiny: Path, tmp_path: Path, count: int) -> None:
    command.run(Options(tiny, tmp_path / "whole", "int4", shard_bytes=SMALL))
    target, before = tmp_path / "target", content(tiny)
    options = Options(tiny, target, "int4", shard_bytes=SMALL)
    with interrupted_after(tmp_path / "target.partial", count), pytest.raises(QuantizeError, match="stopped"):
        command.run(options)
    assert not target.exists()
    assert content(tiny) == before
    finished = {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "target.partial").glob("model-*.safetensors")
    }
    command.run(options)
    assert content(target) == content(tmp_path / "whole")
    assert content(tiny) == before
    assert not (tmp_path / "target.partial").exists()
    kept = [name for name, when in finished.items() if (target / name).stat().st_mtime_ns == when]
    assert len(kept) >= len(finished) - 1  # the last one may not have reached the manifest


def test_killed_at_any_moment_it_leaves_a_complete_output_or_one_to_resume(tiny: Path, tmp_path: Path) -> None:
    """Twice in every stage: calibrating, writing, noting what is written, finishing, and up to the last rename."""
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "killed"
    prompts.write_text('{"text": "One picture is worth ten thousand words."}\n')
    folder.mkdir()
    before, times = content(tiny), {path: path.stat().st_mtime_ns for path in tiny.iterdir()}
    arguments = [tiny, prompts, folder, str(KILLS_EACH), str(SEED)]
    shown = subprocess.run(
        [sys.executable, "-m", "tests.quantize.killed", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    kills = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(kills) == 5 * KILLS_EACH
    whole = content(folder / "whole")
    for number, kill in enumerate(kills):
        assert (kill["status"], kill["again"]) == (-signal.SIGKILL, 0), kill
        assert content(folder / f"{number}") == whole, kill
    assert {path.name for path in folder.iterdir()} == {"whole", *map(str, range(len(kills)))}  # nothing is left
    assert content(tiny) == before
    assert {path: path.stat().st_mtime_ns for path in tiny.iterdir()} == times


def stop_after_three(tiny: Path, tmp_path: Path, options: Options) -> Path:
    with interrupted_after(tmp_path / "target.partial", 3), pytest.raises(QuantizeError, match="stopped"):
        command.run(options)
    return tmp_path / "target.partial"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_finished_shard_that_was_damaged_is_made_again(tiny: Path, tmp_path: Path) -> None:
    options = Options(tiny, tmp_path / "target", "int4", shard_bytes=SMALL)
    partial = stop_after_three(tiny, tmp_path, options)
    first = min(partial.glob("model-*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    command.run(options)
    assert (tmp_path / "target" / first.name).read_bytes() == whole


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_going_on_with_other_options_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    partial = stop_after_three(tiny, tmp_path, Options(tiny, tmp_path / "target", "int4", shard_bytes=SMALL))
    with pytest.raises(QuantizeError, match=r"target\.partial: was begun with another lm_head \(false, now true\)"):
        command.run(Options(tiny, tmp_path / "target", "int4", lm_head=True, shard_bytes=SMALL))
    assert (partial / manifest.NAME).exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_going_on_from_a_changed_source_is_refused(tiny: Path, tmp_path: Path) -> None:
    options = Options(tiny, tmp_path / "target", "int4", shard_bytes=SMALL)
    stop_after_three(tiny, tmp_path, options)
    os.utime(tiny / "model.safetensors")
    with pytest.raises(QuantizeError, match="was begun with another source"):
        command.run(options)


def test_two_runs_never_write_to_one_folder(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "target.partial").mkdir()
    other = os.open(tmp_path / "target.partial", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(QuantizeError, match="another process is writing there"):
            command.run(Options(tiny, tmp_path / "target", "int4"))
    finally:
        os.close(other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types_of_weights_are_read_too(tiny: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in load_file(tiny / "model.safetensors").items()}
    save_file(stored, tiny / "model.safetensors")
    report = json.loads(command.run(Options(tiny, tmp_path / "target", "int4", check=True)))
    assert report["relative_error_worst"] < 0.12


def test_shards_stay_below_their_size_and_hold_everything_once(tiny: Path, tmp_path: Path) -> None:
    command.run(Options(tiny, tmp_path / "target", "int4", shard_bytes=SMALL))
    sizes = sorted(path.stat().st_size for path in (tmp_path / "target").glob("*.safetensors"))
    assert len(sizes) > 12
    whole = [size for size in sizes if size > 2 * SMALL]  # headers come on top of SMALL
    assert len(whole) == 3  # embedding, head and the tower's position table: each larger than a shard


def test_weights_in_other_formats_and_hidden_files_stay_behind(tiny: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "consolidated.pth", ".gitattributes", "notes.txt"):
        (tiny / name).write_text("x")
    (tiny / "figures").mkdir()
    command.run(Options(tiny, tmp_path / "target", "int4"))
    made = set(content(tmp_path / "target"))
    assert "notes.txt" in made
    assert made.isdisjoint({"pytorch_model.bin", "consolidated.pth", ".gitattributes", "figures"})


def test_a_large_tensor_is_never_whole_in_memory(tiny: Path, tmp_path: Path) -> None:
    """A sparse embedding and head of 160 MB each pass through a process that stays far below one of them."""
    widen(tiny)
    assert growth("quantize", "quantize", str(tiny), str(tmp_path / "target"), "--scheme", "int4") < 110_000
