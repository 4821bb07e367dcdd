"""Checkpoint names: the published files' tensors, all of them, and what happens to one that does not belong."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kimi_serve.errors import CheckpointError
from kimi_serve.inputs.config import parse_model_config
from kimi_serve.inputs.tensors import expected_tensors, num_parameters
from kimi_serve.model.weights import Inventory
from tests.model import published

HERE = Path(__file__).parent
PUBLISHED_PARAMETERS = 16_407_656_048  # 32.8 GB in bfloat16, as published
UNMARKED = re.compile(r"\.\d+\.")


@pytest.fixture(scope="module")
def full_size() -> dict[str, tuple[int, ...]]:
    return expected_tensors(parse_model_config(json.loads(published.CONFIG.read_text(encoding="utf-8"))))


def test_full_size_configuration_has_the_published_parameters(full_size):
    config = parse_model_config(json.loads(published.CONFIG.read_text(encoding="utf-8")))
    assert num_parameters(config) == PUBLISHED_PARAMETERS


def test_tower_and_projector_have_the_published_parameters(full_size):
    totals: Counter[str] = Counter()
    for name, shape in full_size.items():
        totals[name.split(".")[0]] += math.prod(shape)
    assert totals["vision_tower"] == 416_866_032
    assert totals["multi_modal_projector"] == 30_679_808
    assert set(totals) == {"vision_tower", "multi_modal_projector", "language_model"}


TOWER = {
    "patch_embed.proj.weight": (1, (1152, 3, 14, 14)),
    "patch_embed.proj.bias": (1, (1152,)),
    "patch_embed.pos_emb.weight": (1, (64, 64, 1152)),
    "encoder.blocks.#.norm0.weight": (27, (1152,)),
    "encoder.blocks.#.norm0.bias": (27, (1152,)),
    "encoder.blocks.#.norm1.weight": (27, (1152,)),
    "encoder.blocks.#.norm1.bias": (27, (1152,)),
    "encoder.blocks.#.wqkv.weight": (27, (3456, 1152)),
    "encoder.blocks.#.wqkv.bias": (27, (3456,)),
    "encoder.blocks.#.wo.weight": (27, (1152, 1152)),
    "encoder.blocks.#.wo.bias": (27, (1152,)),
    "encoder.blocks.#.mlp.fc0.weight": (27, (4304, 1152)),
    "encoder.blocks.#.mlp.fc0.bias": (27, (4304,)),
    "encoder.blocks.#.mlp.fc1.weight": (27, (1152, 4304)),
    "encoder.blocks.#.mlp.fc1.bias": (27, (1152,)),
    "encoder.final_layernorm.weight": (1, (1152,)),
    "encoder.final_layernorm.bias": (1, (1152,)),
}
PROJECTOR = {
    "pre_norm.weight": (1, (1152,)),
    "pre_norm.bias": (1, (1152,)),
    "linear_1.weight": (1, (4608, 4608)),
    "linear_1.bias": (1, (4608,)),
    "linear_2.weight": (1, (2048, 4608)),
    "linear_2.bias": (1, (2048,)),
}
DECODER = {
    "lm_head.weight": (1, (163840, 2048)),
    "model.embed_tokens.weight": (1, (163840, 2048)),
    "model.norm.weight": (1, (2048,)),
    "model.layers.#.input_layernorm.weight": (27, (2048,)),
    "model.layers.#.post_attention_layernorm.weight": (27, (2048,)),
    "model.layers.#.self_attn.q_proj.weight": (27, (3072, 2048)),
    "model.layers.#.self_attn.kv_a_proj_with_mqa.weight": (27, (576, 2048)),
    "model.layers.#.self_attn.kv_a_layernorm.weight": (27, (512,)),
    "model.layers.#.self_attn.kv_b_proj.weight": (27, (4096, 512)),
    "model.layers.#.self_attn.o_proj.weight": (27, (2048, 2048)),
    "model.layers.#.mlp.gate_proj.weight": (1, (11264, 2048)),
    "model.layers.#.mlp.up_proj.weight": (1, (11264, 2048)),
    "model.layers.#.mlp.down_proj.weight": (1, (2048, 11264)),
    "model.layers.#.mlp.gate.weight": (26, (64, 2048)),
    "model.layers.#.mlp.gate.e_score_correction_bias": (26, (64,)),
    "model.layers.#.mlp.experts.#.gate_proj.weight": (26 * 64, (1408, 2048)),
    "model.layers.#.mlp.experts.#.up_proj.weight": (26 * 64, (1408, 2048)),
    "model.layers.#.mlp.experts.#.down_proj.weight": (26 * 64, (2048, 1408)),
    "model.layers.#.mlp.shared_experts.gate_proj.weight": (26, (2816, 2048)),
    "model.layers.#.mlp.shared_experts.up_proj.weight": (26, (2816, 2048)),
    "model.layers.#.mlp.shared_experts.down_proj.weight": (26, (2048, 2816)),
}


@pytest.mark.parametrize(
    ("root", "published"),
    [("vision_tower", TOWER), ("multi_modal_projector", PROJECTOR), ("language_model", DECODER)],
)
def test_every_published_name_has_its_count_and_shape(root, published, full_size):
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    for name, shape in full_size.items():
        if name.startswith(f"{root}."):
            pattern = UNMARKED.sub(".#.", name.removeprefix(f"{root}."))
            count, known = found.get(pattern, (0, shape))
            assert known == shape
            found[pattern] = (count + 1, shape)
    assert found == published


def test_only_the_first_layer_is_dense(full_size):
    assert "language_model.model.layers.0.mlp.gate_proj.weight" in full_size
    assert "language_model.model.layers.1.mlp.experts.63.up_proj.weight" in full_size
    assert "language_model.model.layers.0.mlp.gate.weight" not in full_size


def test_checkpoint_trained_with_greedy_routing_has_no_correction_bias():
    raw = json.loads(published.CONFIG.read_text(encoding="utf-8"))
    raw["text_config"]["topk_method"] = "greedy"
    assert not [name for name in expected_tensors(parse_model_config(raw)) if "e_score_correction_bias" in name]


EXPECTED = {
    "tower.wo.weight": (4, 2),
    "tower.wo.bias": (4,),
    "head.weight": (3, 2),
    "norm.weight": (2,),
    "x.weight": (1,),
}


def inventory(*, quantized: bool = False, without: tuple[str, ...] = ()) -> Inventory:
    checked = Inventory(EXPECTED, quantized=quantized)
    for name, shape in EXPECTED.items():
        if name not in without:
            checked.check(name, torch.empty(shape))
    return checked


def test_complete_checkpoint_passes():
    inventory().finish()


def test_missing_tensor_is_named():
    with pytest.raises(CheckpointError, match=r"missing from the checkpoint: head\.weight$"):
        inventory(without=("head.weight",)).finish()


def test_only_the_rest_is_missed_where_a_part_of_the_model_is_optional():
    checked = Inventory(EXPECTED, quantized=False, optional="tower.")
    for name in ("norm.weight", "x.weight"):
        checked.check(name, torch.empty(EXPECTED[name]))
    with pytest.raises(CheckpointError, match=r"missing from the checkpoint: head\.weight$"):
        checked.finish()
    checked.check("head.weight", torch.empty(3, 2))
    checked.finish()


def test_a_tensor_of_an_optional_part_is_checked_all_the_same():
    with pytest.raises(CheckpointError, match=r"'tower\.wo\.bias' has shape \(5,\)"):
        Inventory(EXPECTED, quantized=False, optional="tower.").check("tower.wo.bias", torch.empty(5))


def test_many_missing_tensors_are_counted():
    with pytest.raises(CheckpointError, match=r"tower\.wo\.weight, tower\.wo\.bias, head\.weight and 2 more$"):
        inventory(without=tuple(EXPECTED)).finish()


def test_unexpected_tensor_is_named():
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'head\.bias'"):
        inventory().check("head.bias", torch.empty(3))


def test_tensor_of_another_shape_is_named_with_both_shapes():
    with pytest.raises(CheckpointError, match=r"'head\.weight' has shape \(2, 3\); the configuration says \(3, 2\)"):
        inventory(without=("head.weight",)).check("head.weight", torch.empty(2, 3))


def test_packed_weight_of_a_quantized_linear_counts_as_its_weight():
    checked = inventory(quantized=True, without=("head.weight",))
    checked.check("head.weight_packed", torch.empty(3, 1, dtype=torch.int32))
    checked.check("head.weight_scale", torch.empty(3))
    checked.finish()


def test_quantized_checkpoint_still_refuses_an_unknown_module():
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'tail\.weight_packed'"):
        inventory(quantized=True).check("tail.weight_packed", torch.empty(3))


def test_quantized_checkpoint_still_refuses_a_bias_of_another_shape():
    with pytest.raises(CheckpointError, match=r"tower\.wo\.bias"):
        inventory(quantized=True).check("tower.wo.bias", torch.empty(5))


@pytest.mark.engine
def test_full_size_model_builds_without_memory(tmp_path, golden_pack, vllm_host):
    """vLLM's own construction of our class; nothing is allocated."""
    published.write(tmp_path, golden_pack / "checkpoint")
    ran = vllm_host.run("-m", "tests.model.build_full_size", str(tmp_path))
    assert ran.status == 0, ran.stderr[-4000:]
    built = json.loads(ran.stdout.splitlines()[-1])
    assert built["class"] == "kimi_serve.model.kimi_vl.KimiVLForConditionalGeneration"
    assert built["parameters"] == PUBLISHED_PARAMETERS
    assert built["devices"] == ["meta"]


@pytest.mark.engine
def test_engine_ends_and_names_the_tensor_of_a_broken_checkpoint(tmp_path, golden_pack, vllm_host):
    broken = "language_model.model.layers.2.mlp.experts.5.up_proj.weight"
    subprocess.run([sys.executable, golden_pack / "make_checkpoint.py", tmp_path], check=True, capture_output=True)
    for shard in tmp_path.glob("*.safetensors"):
        tensors = load_file(shard)
        if tensors.pop(broken, None) is not None:
            save_file(tensors, shard)
    probe = f"from vllm import LLM; LLM({str(tmp_path)!r}, max_model_len=512, enforce_eager=True)"
    ran = vllm_host.run("-c", probe, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    assert ran.status == 1
    assert f"CheckpointError: missing from the checkpoint: {broken}" in ran.stdout + ran.stderr
