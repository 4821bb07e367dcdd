"""Which quantized checkpoints our kernels take on a CPU, and what vLLM is told."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from compressed_tensors.quantization import QuantizationArgs
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.platforms import current_platform

from kimi_serve.errors import KernelError
from kimi_serve.inputs.config import parse_model_config
from kimi_serve.model.cpu_compressed import CpuCompressedTensors, form_of, refuse_ranks
from kimi_serve.model.cpu_quantization import ARCHITECTURE, NAME, CpuQuantization
from kimi_serve.plugin import register
from kimi_serve.quantize import scheme

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="a vLLM for GPUs keeps its own path")

OURS = SimpleNamespace(architectures=[ARCHITECTURE])
SECTION = {"quant_method": "compressed-tensors"}
INT4 = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=128)
INT8 = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
BY_TOKEN = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)


def test_it_claims_compressed_tensors_of_our_architecture_only() -> None:
    claim = CpuQuantization.override_quantization_method
    assert claim(SECTION, None, OURS) == NAME
    assert claim(SECTION, "compressed-tensors", OURS) == NAME
    assert claim(SECTION, "awq", OURS) is None
    assert claim({"quant_method": "gptq"}, None, OURS) is None
    assert claim(SECTION, None, SimpleNamespace(architectures=["DeepseekV3ForCausalLM"])) is None
    assert claim(SECTION, None, SimpleNamespace(architectures=None)) is None
    assert claim(SECTION, None) is None


def test_vllm_finds_it_after_registering_twice() -> None:
    register()
    register()
    assert get_quantization_config(NAME) is CpuQuantization


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_it_reads_the_section_that_our_quantizer_writes(name: str, golden_pack: Path) -> None:
    raw = json.loads((golden_pack / "checkpoint" / "config.json").read_text())
    chosen = scheme.choose(parse_model_config(raw), name, None, lm_head=True, tower=True)
    config = CpuQuantization.from_config(dict(scheme.config_section(chosen)))
    assert isinstance(config, CpuCompressedTensors)
    forms = [form_of(target) for target in config.target_scheme_map.values() if target]
    expected = {(4, 64), (8, 0)} if name == "int4" else {(8, 0)}
    assert {(form.bits, form.group) for form in forms if form} == expected
    assert None not in forms


def test_activations_of_int4_follow_vllms_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "0")
    form = form_of({"weights": INT4, "input_activations": None})
    assert form
    assert form.exact
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "1")
    form = form_of({"weights": INT4, "input_activations": None})
    assert form
    assert not form.exact


@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (INT4.model_copy(update={"group_size": 256}), None),
        (INT4.model_copy(update={"symmetric": False}), None),
        (INT4.model_copy(update={"num_bits": 3}), None),
        (INT4, BY_TOKEN),
        (INT8, None),
        (INT8, BY_TOKEN.model_copy(update={"symmetric": False})),
        (INT8, BY_TOKEN.model_copy(update={"dynamic": False})),
        (INT8.model_copy(update={"strategy": "tensor"}), BY_TOKEN),
        (None, None),
    ],
)
def test_other_schemes_stay_with_vllm(weights: object, activations: object) -> None:
    assert form_of({"weights": INT8, "input_activations": BY_TOKEN}) is not None
    assert form_of({"weights": weights, "input_activations": activations}) is None


def test_several_ranks_are_refused_by_the_flags_name() -> None:
    refuse_ranks("--tensor-parallel-size", 1)
    with pytest.raises(KernelError, match="--tensor-parallel-size: 2 with quantized weights on a CPU is not supported"):
        refuse_ranks("--tensor-parallel-size", 2)
