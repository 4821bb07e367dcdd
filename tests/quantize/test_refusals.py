"""What cannot be quantized is refused before any weight is read, in a sentence naming field, value and limit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kimi_serve import cli
from kimi_serve.errors import CheckpointError, ConfigError, KimiServeError, QuantizeError
from kimi_serve.inputs.config import parse_model_config
from kimi_serve.quantize import command, output, scheme
from kimi_serve.quantize.options import Options

FULL_SIZE = Path(__file__).parents[1] / "model" / "full_size_config.json"


def refused(tiny: Path, tmp_path: Path, kind: type[KimiServeError], words: str, **more: object) -> None:
    """Refused, with nothing left behind."""
    before = sorted(tmp_path.iterdir())
    options: dict[str, object] = {"scheme": "int4", "target": tmp_path / "target"} | more
    with pytest.raises(kind, match=words):
        command.run(Options(source=tiny, **options))  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before


def edit(directory: Path, **changes: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def test_a_source_that_is_no_kimi_vl(tiny: Path, tmp_path: Path) -> None:
    edit(tiny, model_type="llava")
    refused(tiny, tmp_path, ConfigError, r"config\.json\.model_type: 'llava' is not supported; supported: 'kimi_vl'")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none", tmp_path, QuantizeError, "SRC: .*none is not a directory")


def test_a_source_that_is_already_quantized(tiny: Path, tmp_path: Path) -> None:
    edit(tiny, quantization_config={"quant_method": "fp8"})
    refused(tiny, tmp_path, QuantizeError, r"SRC: .* is already quantized \(quant_method 'fp8'\)")


@pytest.mark.parametrize("inside", ["tiny/out", "tiny", "."])
def test_a_target_and_a_source_inside_each_other(tiny: Path, tmp_path: Path, inside: str) -> None:
    refused(tiny, tmp_path, QuantizeError, "DST: .* lie inside each other", target=tmp_path / inside)


def test_a_target_that_is_a_file(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("")
    refused(tiny, tmp_path, QuantizeError, "DST: .*target is a file")


def test_a_target_that_exists(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "target").mkdir()
    refused(tiny, tmp_path, QuantizeError, "DST: .*target exists; choose another, or add --check")
    monkeypatch.chdir(tmp_path / "target")
    refused(tiny, tmp_path, QuantizeError, "DST: . exists; choose another, or add --check", target=Path())


def test_a_target_that_is_no_checkpoint_is_not_compared(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    refused(tiny, tmp_path, QuantizeError, r"DST: .* holds no config\.json", check=True)


def test_a_target_made_with_other_options_is_not_compared(tiny: Path, tmp_path: Path) -> None:
    command.run(Options(tiny, tmp_path / "target", "int8"))
    refused(tiny, tmp_path, QuantizeError, "DST: .* was made with other options", check=True)


def test_an_unknown_scheme(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tiny, tmp_path, QuantizeError, "--scheme: 'int3' is not supported; supported: int4, int8", scheme="int3")
    with pytest.raises(SystemExit):
        cli.main(["quantize", str(tiny), str(tmp_path / "target"), "--scheme", "int3"])
    assert "invalid choice: 'int3'" in capsys.readouterr().err


def test_a_group_size_that_does_not_divide_a_width(tiny: Path, tmp_path: Path) -> None:
    words = r"--group-size: 64 does not divide 32, the input size of .*kv_b_proj\.weight"
    refused(tiny, tmp_path, QuantizeError, words, group_size=64)


def test_a_group_size_for_int8(tiny: Path, tmp_path: Path) -> None:
    refused(tiny, tmp_path, QuantizeError, "--group-size: 64 with --scheme int8", scheme="int8", group_size=64)


def test_prompts_without_a_check(tiny: Path, tmp_path: Path) -> None:
    refused(tiny, tmp_path, QuantizeError, "--prompts: needs --check", prompts=tmp_path / "p.jsonl")


def test_a_disk_without_room(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"needs 9\.00 GB more; its disk has 8\.50 GB free"):
        output.refuse_without_room(tmp_path, 9_000_000_000, 8_500_000_000)


def change(tiny: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    stored = load_file(tiny / "model.safetensors")
    changed = {name: tensor for name, tensor in (stored | tensors).items() if tensor is not None}
    save_file(changed, tiny / "model.safetensors")


NORM = "language_model.model.norm.weight"
OUT = "language_model.model.layers.0.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({NORM: None}, f"missing from the checkpoint: {NORM}"),
        ({"stray": torch.ones(2)}, "unexpected tensor 'stray'"),
        ({NORM: torch.ones(3)}, r"has shape \(3,\); the configuration says \(64,\)"),
        ({NORM: torch.ones(64, dtype=torch.int8)}, "has dtype I8; supported: BF16, F16, F32"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(
    tiny: Path, tmp_path: Path, tensors: dict[str, torch.Tensor | None], words: str
) -> None:
    change(tiny, tensors)
    refused(tiny, tmp_path, CheckpointError, words)


def test_a_file_that_was_cut_short(tiny: Path, tmp_path: Path) -> None:
    whole = (tiny / "model.safetensors").read_bytes()
    (tiny / "model.safetensors").write_bytes(whole[:-10])
    refused(tiny, tmp_path, CheckpointError, f"ends at byte {len(whole)}; the file has {len(whole) - 10}")


def test_a_file_that_is_no_safetensors_file(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(tiny, tmp_path, CheckpointError, "is no safetensors file: its header would be")


def test_an_index_that_names_a_missing_file(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002.safetensors"}}')
    refused(tiny, tmp_path, CheckpointError, "names model-00002.safetensors, which is not there")


def test_a_weight_that_is_not_finite_is_named_with_its_rows(tiny: Path, tmp_path: Path) -> None:
    broken = load_file(tiny / "model.safetensors")[OUT]
    broken[3, 5] = torch.inf
    change(tiny, {OUT: broken})
    with pytest.raises(CheckpointError, match=f"tensor '{OUT}', rows 0 to 63: holds a value that is not finite"):
        command.run(Options(tiny, tmp_path / "target", "int4"))
    assert not (tmp_path / "target").exists()


def test_a_place_where_nothing_may_be_written(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tiny, tmp_path, QuantizeError, "Not a directory", target=tmp_path / "file" / "target")


def test_the_command_line_says_it_in_one_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(tiny), str(tiny / "out"), "--scheme", "int4"]) == 1
    assert capsys.readouterr().err.startswith("kimi-serve quantize: error: DST: ")
    assert cli.main(["quantize", "a", "b", "--scheme", "int4", "--fast"]) == 1
    assert "--fast: not an option of quantize" in capsys.readouterr().err


def test_group_sizes_are_the_largest_that_fit(tiny: Path) -> None:
    full = parse_model_config(json.loads(FULL_SIZE.read_text()))
    small = parse_model_config(json.loads((tiny / "config.json").read_text()))
    assert scheme.choose(full, "int4", None, lm_head=True, tower=True).decoder.group_size == 128
    assert scheme.choose(full, "int4", 32, lm_head=True, tower=True).decoder.group_size == 32
    assert scheme.choose(small, "int4", None, lm_head=True, tower=True).decoder.group_size == 32


def test_a_width_that_no_group_divides(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    config["text_config"]["moe_intermediate_size"] = 40
    (tiny / "config.json").write_text(json.dumps(config))
    shutil.rmtree(tmp_path / "target", ignore_errors=True)
    words = r"--scheme int4: .*down_proj\.weight has an input size of 40; it must be a multiple of 32"
    refused(tiny, tmp_path, QuantizeError, words)
