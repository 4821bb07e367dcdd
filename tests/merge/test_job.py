"""A merge from its first step to the rename, stopped on the way, and compared. Real files, real processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kimi_serve.errors import AdapterError, KimiServeError, QuantizeError
from kimi_serve.merge import command
from kimi_serve.merge.options import Options
from tests.merge.adapters import ROOT as PREFIX
from tests.merge.adapters import draw, write
from tests.quantize.large import ROWS, growth, widen
from tests.quantize.test_job import ROOT, SMALL, content, shards


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    draw(tmp_path / "adapter", tiny)
    return tmp_path / "adapter"


def killed(tiny: Path, adapter: Path, target: Path) -> None:
    """Kill a merge outright as soon as three files are finished."""
    code = (
        "from pathlib import Path; from kimi_serve.merge import command; "
        "from kimi_serve.merge.options import Options; "
        f"command.run(Options(Path({str(tiny)!r}), Path({str(adapter)!r}), Path({str(target)!r}), shard_bytes={SMALL}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    while shards(target.with_name("target.partial")) < 3 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()


def test_killed_outright_the_same_command_goes_on_to_the_same_bytes(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    before, target = content(tiny) | content(adapter), tmp_path / "target"
    command.run(Options(tiny, adapter, tmp_path / "whole", shard_bytes=SMALL))
    killed(tiny, adapter, target)
    assert not target.exists()
    assert content(tiny) | content(adapter) == before
    command.run(Options(tiny, adapter, target, check=True, shard_bytes=SMALL))
    assert content(target) == content(tmp_path / "whole")
    assert content(tiny) | content(adapter) == before
    assert not (tmp_path / "target.partial").exists()


def test_going_on_with_another_adapter_or_base_is_refused(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    killed(tiny, adapter, tmp_path / "target")
    draw(adapter, tiny, seed=1)
    with pytest.raises(QuantizeError, match=r"target\.partial: was begun with another adapter"):
        command.run(Options(tiny, adapter, tmp_path / "target", shard_bytes=SMALL))
    os.utime(tiny / "model.safetensors")
    with pytest.raises(QuantizeError, match=r"target\.partial: was begun with another source"):
        command.run(Options(tiny, adapter, tmp_path / "target", shard_bytes=SMALL))


def test_the_check_says_how_far_weights_went(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    report = json.loads(command.run(Options(tiny, adapter, tmp_path / "target", check=True)))
    assert 0.2 < report["change_mean"] < report["change_most"] < 0.6  # drawn at 0.2, scaled by 2
    assert report["most_changed"].endswith("_proj.weight")
    again = json.loads(command.run(Options(tiny, adapter, tmp_path / "target", check=True)))
    assert again == report


@pytest.mark.parametrize("end", ["layers.0.self_attn.q_proj.weight", "layers.1.mlp.gate.weight"])
def test_the_check_finds_one_changed_bit_in_merged_and_copied_weights(
    tiny: Path, adapter: Path, tmp_path: Path, end: str
) -> None:
    command.run(Options(tiny, adapter, tmp_path / "target"))
    [file] = (tmp_path / "target").glob("*.safetensors")
    tensors = load_file(file)
    [name] = [name for name in tensors if name.endswith(end)]
    tensors[name][-1, -1] = -tensors[name][-1, -1]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(AdapterError, match=f"tensor '{name}' is not what BASE and ADAPTER give"):
        command.run(Options(tiny, adapter, tmp_path / "target", check=True))


def test_another_adapters_result_does_not_pass_the_check(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    command.run(Options(tiny, adapter, tmp_path / "target"))
    draw(tmp_path / "other", tiny, seed=1)
    with pytest.raises(AdapterError, match="is not what BASE and ADAPTER give"):
        command.run(Options(tiny, tmp_path / "other", tmp_path / "target", check=True))


def test_a_target_that_exists_is_left_as_it_is(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(AdapterError, match=r"DST: .*target exists; choose another, or add --check"):
        command.run(Options(tiny, adapter, tmp_path / "target"))
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("where", ["tiny", "tiny/out", "adapter", "adapter/out"])
def test_a_target_inside_what_is_read_is_refused(tiny: Path, adapter: Path, tmp_path: Path, where: str) -> None:
    with pytest.raises(KimiServeError, match=r"DST: .* lie inside each other"):
        command.run(Options(tiny, adapter, tmp_path / where))


def test_large_tensors_are_never_whole_in_memory(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    """A sparse embedding and an adapted head of 160 MB each pass through a process that stays far below one of them."""
    widen(tiny)
    head = f"{PREFIX}language_model.lm_head"
    halves = {f"{head}.lora_A.weight": torch.ones(2, 64), f"{head}.lora_B.weight": torch.ones(ROWS, 2)}
    write(adapter, halves, {"r": 2, "lora_alpha": 2, "target_modules": ["lm_head"]})
    assert growth("merge-lora", "merge", str(tiny), str(adapter), str(tmp_path / "target")) < 110_000
