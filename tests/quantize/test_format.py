"""The files are the public format: compressed-tensors' own code and vLLM's read them as we do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import IntQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from safetensors.torch import load_file

from kimi_serve.inputs.config import load_checkpoint
from kimi_serve.inputs.headers import INDEX
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.quantize.packing import pack, unpack
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.source import Weights

Quantized = Callable[..., Path]
LAYER = "language_model.model.layers.1"
VARIANTS = [
    {"scheme": "int4"},
    {"scheme": "int8"},
    {"scheme": "int4", "lm_head": True, "tower": True},
    {"scheme": "int8", "lm_head": True, "tower": True},
]


def section(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())["quantization_config"]
    return found


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def test_packing_equals_compressed_tensors_bit_for_bit() -> None:
    integers = torch.randint(-8, 8, (7, 96), dtype=torch.int8)
    assert pack(integers).equal(pack_to_int32(integers, 4))
    assert unpack(pack(integers)).equal(integers)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_compressed_tensors_decompresses_every_weight_to_what_we_read(
    quantized: Quantized, variant: dict[str, Any]
) -> None:
    directory = quantized(**variant)
    stored, config = tensors(directory), section(directory)
    groups = {
        group["format"]: QuantizationScheme.model_validate(
            {key: group[key] for key in ("targets", "weights", "input_activations")}
        )
        for group in config["config_groups"].values()
    }
    compared = 0
    with Weights(directory) as weights:
        model = Model(weights)
        for name in [name.removesuffix("_scale") for name in stored if name.endswith(".weight_scale")]:
            module = name.removesuffix(".weight")
            parts = {k.removeprefix(f"{module}."): v for k, v in stored.items() if k.startswith(f"{module}.weight")}
            if "weight_packed" in parts:
                theirs = PackedQuantizationCompressor.decompress(parts, groups["pack-quantized"])
            else:
                theirs = IntQuantizationCompressor.decompress(parts, groups["int-quantized"])
            assert theirs["weight"].float().equal(model.tensor(name)), name
            compared += 1
    assert compared == sum(model.format_of(name) is not None for name in expected(directory))
    assert compared >= 100


def expected(directory: Path) -> dict[str, tuple[int, ...]]:
    return expected_tensors(load_checkpoint(directory).model)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_configuration_is_a_valid_one_of_compressed_tensors(quantized: Quantized, variant: dict[str, Any]) -> None:
    config = QuantizationConfig.model_validate(section(quantized(**variant)))
    assert config.quantization_status.value == "compressed"
    assert config.format == ("mixed-precision" if variant == VARIANTS[2] else section(quantized(**variant))["format"])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_what_is_not_asked_for_stays_bit_for_bit(golden: Path, quantized: Quantized, variant: dict[str, Any]) -> None:
    before, after = tensors(golden), tensors(quantized(**variant))
    kept = {name for name in before if name in after and after[name].dtype == before[name].dtype}
    assert all(after[name].view(torch.uint8).equal(before[name].view(torch.uint8)) for name in kept)
    assert {
        f"{LAYER}.mlp.gate.weight",
        f"{LAYER}.mlp.gate.e_score_correction_bias",
        f"{LAYER}.input_layernorm.weight",
        f"{LAYER}.self_attn.kv_a_layernorm.weight",
        "language_model.model.embed_tokens.weight",
        "multi_modal_projector.linear_1.weight",
        "vision_tower.patch_embed.proj.weight",
        "vision_tower.encoder.blocks.0.wqkv.bias",
    } <= kept
    assert ("language_model.lm_head.weight" in kept) is not variant.get("lm_head", False)
    assert ("vision_tower.encoder.blocks.0.mlp.fc0.weight" in kept) is not variant.get("tower", False)


def test_the_index_names_every_tensor_and_its_size(quantized: Quantized) -> None:
    directory = quantized("int4")
    index = json.loads((directory / INDEX).read_text())
    stored = {name: file.name for file in directory.glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors(directory).values())


def test_the_other_files_come_along(golden: Path, quantized: Quantized) -> None:
    directory = quantized("int8")
    for name in ("tiktoken.model", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json"):
        assert (directory / name).read_bytes() == (golden / name).read_bytes()
    before = json.loads((golden / "config.json").read_text())
    after = json.loads((directory / "config.json").read_text())
    assert {key: value for key, value in after.items() if key != "quantization_config"} == before
