"""Which modules of an adapter an engine applies, what vLLM is told of it, and the upstream fault that we mend."""

import json
from pathlib import Path

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from kimi_serve.errors import AdapterError
from kimi_serve.model import lora
from kimi_serve.model.lora import AdapterNames, Served
from tests.vllm_host import Host

LAYER = "language_model.model.layers.1"
BLOCK = "vision_tower.encoder.blocks.0"
MODULES = frozenset(
    [
        *(f"{LAYER}.self_attn.{name}" for name in ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")),
        *(f"{LAYER}.mlp.{part}.gate_proj" for part in ("shared_experts", "experts.0", "experts.7")),
        *(f"{BLOCK}.{name}" for name in ("wqkv", "wo", "mlp.fc0")),
        "multi_modal_projector.linear_1",
        "language_model.lm_head",
    ]
)


def served(able: tuple[str, ...], targets: tuple[str, ...] | None = None) -> Served:
    return Served(MODULES, able if targets is None else targets, able)


@pytest.mark.parametrize(
    ("able", "refused"),
    [
        (
            lora.DECODER,
            ["kv_b_proj", "experts.0.gate_proj", "experts.7.gate_proj", "wqkv", "wo", "fc0", "linear_1", "lm_head"],
        ),
        ((*lora.DECODER, lora.ABSORBED, *lora.TOWER), ["experts.0.gate_proj", "experts.7.gate_proj", "lm_head"]),
        ((*lora.DECODER, lora.EXPERTS), ["kv_b_proj", "wqkv", "wo", "fc0", "linear_1", "lm_head"]),
    ],
)
def test_a_module_is_applied_or_refused_by_name(able: tuple[str, ...], refused: list[str]) -> None:
    for module in MODULES:
        if not module.endswith(tuple(refused)):
            served(able).check(module)
            continue
        with pytest.raises(AdapterError, match=rf"^{module}: .*kimi-serve merge-lora"):
            served(able).check(module)


@pytest.mark.parametrize("module", [f"{LAYER}.self_attn.k_proj", "language_model.model.layers.4.self_attn.q_proj"])
def test_a_module_that_the_base_lacks_is_refused(module: str) -> None:
    with pytest.raises(AdapterError, match=f"^{module}: the base has no such linear"):
        served(lora.DECODER).check(module)


@pytest.mark.parametrize("target", ["gate_up_proj", "gate_proj", "up_proj"])
def test_a_part_of_a_fused_layer_stands_for_the_layer(target: str) -> None:
    some = served(lora.DECODER, (target,))
    some.check(f"{LAYER}.mlp.shared_experts.gate_proj")
    with pytest.raises(AdapterError, match=r"q_proj: --lora-target-modules leaves it out; add q_proj, or merge"):
        some.check(f"{LAYER}.self_attn.q_proj")


def test_the_towers_attention_is_found_under_our_name() -> None:
    names = AdapterNames(served((*lora.DECODER, *lora.TOWER))).get_rename_mapper()
    assert names._map_name(f"{BLOCK}.wqkv.lora_A.weight") == f"{BLOCK}.attn.wqkv.lora_A.weight"
    assert names._map_name(f"{BLOCK}.mlp.fc0.lora_B.weight") == f"{BLOCK}.mlp.fc0.lora_B.weight"
    assert names._map_name(f"{LAYER}.self_attn.q_proj.lora_B.weight") == f"{LAYER}.self_attn.q_proj.lora_B.weight"
    with pytest.raises(AdapterError, match=r"holds '.*lora_magnitude_vector'; supported: MODULE"):
        names._map_name(f"{BLOCK}.wqkv.lora_magnitude_vector")


def added_to_the_base(*, empty_slot: bool) -> torch.Tensor:
    """What vLLM's kernels for CPUs add to a token without an adapter, beside one with the only adapter there is."""
    a, b = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 3, 2)
    if empty_slot:
        a, b = lora._with_empty_slot(a), lora._with_empty_slot(b)
    punica = PunicaWrapperCPU(8, 8, "cpu")
    punica.update_metadata(LoRAMapping((5, 0), (5, 0), is_prefill=True), [5], 2, 100)
    y = torch.zeros(2, 3)
    punica.add_lora_linear(y, torch.ones(2, 4), (a,), (b,), 1.0, (3,))
    assert torch.equal(y[0], torch.full((3,), 8.0))
    return y[1]


def test_an_empty_slot_keeps_the_base_plain_beside_an_adapter() -> None:
    assert added_to_the_base(empty_slot=True).count_nonzero() == 0


def test_vllms_cpu_kernels_still_give_the_base_the_last_adapter() -> None:
    """When this fails, tokens without an adapter get none: delete keep_the_base_plain and its use."""
    assert added_to_the_base(empty_slot=False).count_nonzero() == 3


PROBE = """
import json, sys
from vllm.engine.arg_utils import EngineArgs

for options in json.loads(sys.argv[2]):
    try:
        config = EngineArgs(sys.argv[1], max_model_len=512, enable_lora=True, **options).create_engine_config()
        print("SAID", json.dumps([config.parallel_config.worker_cls, config.lora_config.target_modules]))
    except ValueError as error:
        print("SAID", json.dumps(str(error)))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllm_is_told_which_layers_and_whose_worker(vllm_host: Host, golden_pack: Path) -> None:
    asked = [
        {},
        {"enable_tower_connector_lora": True, "worker_cls": "somebody.elses.Worker"},
        {"lora_target_modules": ["q_proj", "gate_proj"]},
        {"lora_target_modules": ["q_proj", "gate"]},
        {"enable_tower_connector_lora": True, "mm_encoder_tp_mode": "data"},
    ]
    shown = vllm_host.run("-c", PROBE, str(golden_pack / "checkpoint"), json.dumps(asked), timeout=500)
    assert shown.status == 0, shown.stderr[-3000:]
    lines = [json.loads(line.removeprefix("SAID")) for line in shown.stdout.splitlines() if line.startswith("SAID")]
    plain, tower, some, router, data = lines
    assert plain[0] == "kimi_serve.model.cpu_worker.CpuWorker"
    assert set(lora.DECODER) <= set(plain[1]) <= {*lora.DECODER, lora.ABSORBED}  # no router, no routed experts
    assert tower[0] == "somebody.elses.Worker"
    assert set(lora.TOWER) < set(tower[1])
    assert some[1] == ["q_proj", "gate_proj"]
    assert "--lora-target-modules: 'gate' takes no adapter here; these do: down_proj, gate_up_proj" in router
    assert "--enable-tower-connector-lora: does not go with --mm-encoder-tp-mode data" in data
