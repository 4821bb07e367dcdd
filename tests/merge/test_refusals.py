"""What could be applied in part only is refused before any weight is read, in a sentence that names it."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kimi_serve import cli
from kimi_serve.errors import AdapterError, ConfigError, KimiServeError
from kimi_serve.merge import command
from kimi_serve.merge.options import Options
from tests.merge.adapters import ROOT, draw, write

LAYER = "language_model.model.layers.1"
Q = f"{LAYER}.self_attn.q_proj"


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    draw(tmp_path / "adapter", tiny, (Q, f"{LAYER}.mlp.experts.2.up_proj").__contains__, rank=4)
    return tmp_path / "adapter"


def refused(tiny: Path, adapter: Path, words: str, kind: type[KimiServeError] = AdapterError) -> None:
    """Refused, with nothing left behind."""
    before = sorted(tiny.parent.iterdir())
    with pytest.raises(kind, match=words):
        command.run(Options(tiny, adapter, tiny.parent / "target"))
    assert sorted(tiny.parent.iterdir()) == before


def configure(adapter: Path, **changes: object) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text()) | changes
    (adapter / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, r"adapter_config\.json\.use_dora: True is not supported"),
        ({"bias": "lora_only"}, r"adapter_config\.json\.bias: 'lora_only' is not supported; supported: 'none'"),
        ({"lora_bias": True}, r"adapter_config\.json\.lora_bias: True is not supported"),
        ({"fan_in_fan_out": True}, r"adapter_config\.json\.fan_in_fan_out: True is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"adapter_config\.json\.modules_to_save: \['lm_head'\] is not supported"),
        ({"layer_replication": [[0, 2]]}, r"adapter_config\.json\.layer_replication: "),
        ({"target_parameters": ["mlp.experts"]}, r"adapter_config\.json\.target_parameters: "),
        ({"trainable_token_indices": [1]}, r"adapter_config\.json\.trainable_token_indices: "),
        ({"alora_invocation_tokens": [5]}, r"adapter_config\.json\.alora_invocation_tokens: "),
        ({"a_future_option": 3}, r"adapter_config\.json\.a_future_option: 3 is not supported; expected null, false"),
        ({"init_lora_weights": "pissa_niter_4"}, r"init_lora_weights: 'pissa_niter_4' trains against changed weights"),
        ({"peft_type": "LOHA"}, r"adapter_config\.json\.peft_type: 'LOHA' is not supported; supported: 'LORA'"),
        ({"r": 0}, r"adapter_config\.json\.r: 0 is not supported; expected a whole number of at least 1"),
        ({"r": "8"}, r"adapter_config\.json\.r: '8' is not supported"),
        ({"lora_alpha": math.nan}, r"adapter_config\.json\.lora_alpha: nan is not supported"),
        ({"lora_alpha": None}, r"adapter_config\.json\.lora_alpha: None is not supported"),
        ({"use_rslora": "yes"}, r"adapter_config\.json\.use_rslora: 'yes' is not supported; expected true or false"),
        ({"rank_pattern": {"q_proj": 0}}, r"adapter_config\.json\.rank_pattern\.q_proj: 0 is not supported"),
        ({"alpha_pattern": {"(": 1}}, r"adapter_config\.json\.alpha_pattern: '\(' is no regular expression"),
        ({"r": 8}, rf"tensor '{ROOT}.*lora_A\.weight' has shape \(4, 64\); rank 8 and the base's weight of"),
        (
            {"target_modules": [Q, f"{LAYER}.self_attn.o_proj"]},
            rf"target_modules: names {LAYER}\.self_attn\.o_proj, of which adapter_model\.safetensors holds no tensor",
        ),
    ],
)
def test_a_configuration_that_asks_for_more_than_plain_lora(
    tiny: Path, adapter: Path, changes: dict[str, object], words: str
) -> None:
    configure(adapter, **changes)
    refused(tiny, adapter, words)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        (f"{ROOT}{Q}.lora_magnitude_vector", (48,), r"is not supported \(DoRA\); supported: base_model\.model\.MODULE"),
        (f"{ROOT}{Q}.lora_B.bias", (48,), r"is not supported \(a bias beside B\)"),
        (f"{ROOT}language_model.model.embed_tokens.lora_embedding_A", (4, 9), r"\(an adapted embedding\)"),
        (f"{ROOT}language_model.lm_head.base_layer.weight", (9, 64), r"\(a weight of the base\)"),
        (f"{Q}.lora_A.weight", (4, 64), "is not supported; supported: base_model"),
        (f"{ROOT}{LAYER}.mlp.gate.lora_A.weight", (4, 64), rf"the base has no linear '{LAYER}\.mlp\.gate'"),
        (f"{ROOT}{LAYER}.self_attn.k_proj.lora_A.weight", (4, 64), "the base has no linear '.*k_proj'"),
        (f"{ROOT}{LAYER}.mlp.experts.4.up_proj.lora_A.weight", (4, 64), r"the base has no linear '.*experts\.4"),
        (f"{ROOT}language_model.model.layers.2.self_attn.q_proj.lora_A.weight", (4, 64), "the base has no linear"),
        (f"{ROOT}vision_tower.patch_embed.proj.lora_A.weight", (4, 588), "the base has no linear"),
        (f"{ROOT}{LAYER}.self_attn.o_proj.lora_A.weight", (4, 32), r"o_proj\.lora_B\.weight is missing"),
        (f"{ROOT}{LAYER}.self_attn.o_proj.lora_B.weight", (64, 4), r"o_proj\.lora_A\.weight is missing"),
    ],
)
def test_a_tensor_that_has_no_place(tiny: Path, adapter: Path, name: str, shape: tuple[int, ...], words: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {name: torch.zeros(shape)}, file)
    refused(tiny, adapter, words)


@pytest.mark.parametrize("half", ["A", "B"])
def test_a_half_of_another_shape(tiny: Path, adapter: Path, half: str) -> None:
    """vLLM copies a smaller matrix into the corner of its own."""
    file, name = adapter / "adapter_model.safetensors", f"{ROOT}{Q}.lora_{half}.weight"
    tensors = load_file(file)
    side = 1 if half == "A" else 0
    tensors[name] = tensors[name].narrow(side, 0, tensors[name].shape[side] - 8).contiguous()
    save_file(tensors, file)
    refused(tiny, adapter, f"tensor '{name}' has shape")


def test_integers_are_no_adapter(tiny: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file)
    refused(tiny, adapter, "has dtype I8; supported: BF16, F16, F32")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_is_missing_or_broken(tiny: Path, adapter: Path, file: str) -> None:
    (adapter / file).write_bytes(b"{")
    refused(tiny, adapter, f"{file}: cannot be read|{file}: is no safetensors file")
    (adapter / file).unlink()
    (adapter / "adapter_model.bin").touch()
    refused(tiny, adapter, f"adapter: holds no {file}")


def test_an_adapter_without_tensors(tiny: Path, adapter: Path) -> None:
    write(adapter, {}, {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"})
    refused(tiny, adapter, r"adapter_model\.safetensors holds no tensor")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sum_that_is_not_finite_ends_the_run_by_name(tiny: Path, adapter: Path, value: float) -> None:
    file, name = adapter / "adapter_model.safetensors", f"{ROOT}{Q}.lora_A.weight"
    tensors = load_file(file)
    tensors[name][0, 3] = value
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=rf"{Q}, rows 0 to \d+: the sum with the adapter is not finite"):
        command.run(Options(tiny, adapter, tiny.parent / "target"))
    assert not (tiny.parent / "target").exists()


def test_a_quantized_base_is_sent_back_to_where_it_came_from(tiny: Path, adapter: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    refused(tiny, adapter, r"BASE: .* is quantized \(quant_method 'fp8'\); merge into the checkpoint that it was made")


def test_a_base_of_another_model(tiny: Path, adapter: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    refused(tiny, adapter, "'llava' is not supported", ConfigError)


def test_the_command_line_names_what_is_wrong(
    tiny: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(adapter, use_dora=True)
    assert cli.main(["merge-lora", str(tiny), str(adapter), str(tmp_path / "target")]) == 1
    assert capsys.readouterr().err.startswith(f"kimi-serve merge-lora: error: {adapter}: adapter_config.json.use_dora")
    assert cli.main(["merge-lora", str(tiny), str(adapter), str(tmp_path / "target"), "--scheme"]) == 1
    assert "--scheme: not an option of merge-lora" in capsys.readouterr().err
    assert cli.main(["merge-lora", str(tiny), str(tmp_path / "none"), str(tmp_path / "target")]) == 1
    assert "ADAPTER: " in capsys.readouterr().err
