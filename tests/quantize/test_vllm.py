"""vLLM 0.32 on our config.json: which scheme each module gets, and whether its parameters have our shapes.

No engine runs: vLLM 0.32 has no int4 or int8 experts for this model on a CPU. Its judgement of names, and the shapes
that its layers allocate, are the same on every device.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_w8a8_int8 import (  # noqa: E501
    CompressedTensorsW8A8Int8MoEMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_wna16 import (  # noqa: E501
    CompressedTensorsWNA16MoEMethod,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

Quantized = Callable[..., Path]
FUSED = {"gate_up_proj": ["gate_proj", "up_proj"]}
LAYERS = "language_model.model.layers"
DECODER = [
    f"{LAYERS}.0.mlp.gate_up_proj",
    f"{LAYERS}.0.mlp.down_proj",
    f"{LAYERS}.1.mlp.shared_experts.gate_up_proj",
    f"{LAYERS}.1.mlp.shared_experts.down_proj",
    f"{LAYERS}.2.self_attn.q_proj",
    f"{LAYERS}.2.self_attn.kv_a_proj_with_mqa",
    f"{LAYERS}.2.self_attn.kv_b_proj",
    f"{LAYERS}.2.self_attn.o_proj",
    f"{LAYERS}.3.mlp.experts.0.gate_proj",  # what the fused experts ask about
]
TOWER = [f"vision_tower.encoder.blocks.2.{part}" for part in ("wqkv", "wo", "mlp.fc0", "mlp.fc1")]
KEPT = [f"{LAYERS}.1.mlp.gate", "multi_modal_projector.linear_1", "multi_modal_projector.linear_2"]
HEAD = "language_model.lm_head"
INT4, INT8 = "CompressedTensorsWNA16", "CompressedTensorsW8A8Int8"


class Linear(nn.Module):
    """A module whose class has the word that vLLM looks for in its name."""


class ParallelHead(nn.Module):
    """One whose class has not."""


def read(directory: Path) -> CompressedTensorsConfig:
    config = CompressedTensorsConfig.from_config(
        json.loads((directory / "config.json").read_text())["quantization_config"]
    )
    config.packed_modules_mapping = FUSED
    return config


def scheme_of(config: CompressedTensorsConfig, name: str) -> str | None:
    module = ParallelHead() if name == HEAD else Linear()
    scheme = config.get_scheme(module, name)
    return None if scheme is None else type(scheme).__name__


@pytest.mark.parametrize(("scheme", "decoder"), [("int4", INT4), ("int8", INT8)])
def test_vllm_gives_each_module_the_scheme_that_its_weights_have(
    quantized: Quantized, scheme: str, decoder: str
) -> None:
    config = read(quantized(scheme))
    found = {name: scheme_of(config, name) for name in (*DECODER, *TOWER, *KEPT, HEAD)}
    assert found == dict.fromkeys(DECODER, decoder) | dict.fromkeys((*TOWER, *KEPT, HEAD))


@pytest.mark.parametrize(("scheme", "decoder"), [("int4", INT4), ("int8", INT8)])
def test_vllm_quantizes_the_head_and_the_tower_where_asked(quantized: Quantized, scheme: str, decoder: str) -> None:
    config = read(quantized(scheme, lm_head=True, tower=True))
    found = {name: scheme_of(config, name) for name in (*DECODER, *TOWER, *KEPT, HEAD)}
    assert found == dict.fromkeys((*DECODER, HEAD), decoder) | dict.fromkeys(TOWER, INT8) | dict.fromkeys(KEPT)


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[None]:
    """vLLM's layers want a process group, of one."""
    from vllm.distributed import cleanup_dist_env_and_memory, init_distributed_environment, initialize_model_parallel

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{tmp_path / 'group'}", 0, "gloo")
        initialize_model_parallel(1)
        yield
    cleanup_dist_env_and_memory()


def load(layer: nn.Module, module: str, stored: dict[str, torch.Tensor]) -> None:
    """Give a layer its tensors as a model's loader does; every parameter must get one."""
    filled = set()
    for name, parameter in layer.named_parameters():
        if name != "bias":
            parameter.weight_loader(parameter, stored[f"{module}.{name}"])
            filled.add(name)
    assert filled == {name.removeprefix(f"{module}.") for name in stored if name.startswith(f"{module}.")}


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.usefixtures("rank")
def test_vllms_linear_and_head_load_our_tensors(quantized: Quantized, scheme: str) -> None:
    directory = quantized(scheme, lm_head=True, tower=True)
    config = read(directory)
    stored: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        stored |= load_file(file)
    torch.set_default_dtype(torch.bfloat16)
    try:
        for module, wide, high in ((f"{LAYERS}.1.self_attn.o_proj", 512, 256), (f"{LAYERS}.0.mlp.down_proj", 512, 256)):
            load(ReplicatedLinear(wide, high, bias=False, quant_config=config, prefix=module), module, stored)
        load(ParallelLMHead(1280, 256, quant_config=config, prefix=HEAD), HEAD, stored)
    finally:
        torch.set_default_dtype(torch.float32)


def allocated(method: Any, config: CompressedTensorsConfig, **more: object) -> nn.Module:
    """The parameters of vLLM's fused experts, of 8 experts; its constructor would look for a kernel of this CPU."""
    made = method.__new__(method)
    weights = config.target_scheme_map["Linear"]["weights"]
    made.moe = SimpleNamespace(is_act_and_mul=True, has_bias=False)
    made.weight_quant, made.strategy, made.group_size = weights, weights.strategy, weights.group_size
    made.symmetric, made.num_bits, made.packed_factor = True, weights.num_bits, 32 // weights.num_bits
    made.static_input_scales = False
    layer = nn.Module()
    made.create_weights(layer, 8, 256, 64, torch.bfloat16, **more)
    return layer


@pytest.mark.parametrize(
    ("scheme", "method", "parts"),
    [
        ("int4", CompressedTensorsWNA16MoEMethod, ["weight_packed", "weight_scale"]),
        ("int8", CompressedTensorsW8A8Int8MoEMethod, ["weight", "weight_scale"]),
    ],
)
def test_vllms_fused_experts_have_room_for_exactly_our_tensors(
    quantized: Quantized, scheme: str, method: Any, parts: list[str]
) -> None:
    directory = quantized(scheme)
    layer = allocated(method, read(directory))
    stored: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        stored |= load_file(file)
    expert = f"{LAYERS}.1.mlp.experts.7"
    for part in parts:
        gate, up, down = (stored[f"{expert}.{name}_proj.{part}"] for name in ("gate", "up", "down"))
        for fused, tensor in (("w13", torch.cat([gate, up])), ("w2", down)):
            parameter = getattr(layer, f"{fused}_{part}")
            assert (parameter[7].shape, parameter.dtype) == (tensor.shape, tensor.dtype)
