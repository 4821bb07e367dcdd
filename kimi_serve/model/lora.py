"""LoRA adapters in vLLM: which layers take them, and refusals by name of all else. Knows names and layers; no formula.

vLLM 0.32 looks at the last part of an adapter's names only. What it has no layer for (a layer too many, weights that
were absorbed, modules outside --lora-target-modules) it loads and then passes over, without a word.
"""

import re
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from vllm.config import LoRAConfig, VllmConfig, set_current_vllm_config
from vllm.lora.utils import is_in_target_modules
from vllm.platforms import current_platform

from kimi_serve.errors import AdapterError, ConfigError
from kimi_serve.inputs.adapter import linears_of
from kimi_serve.inputs.config import ModelConfig

if TYPE_CHECKING:
    from vllm.lora.model_manager import LoRAModelManager

# Our fused layers, and what an adapter calls their parts. wqkv is one matrix in checkpoint and adapter alike.
PACKED = {"gate_up_proj": ["gate_proj", "up_proj"], "wqkv": ["wqkv"]}
DECODER = ("q_proj", "kv_a_proj_with_mqa", "o_proj", "gate_up_proj", "down_proj")
TOWER = ("wqkv", "wo", "fc0", "fc1", "linear_1", "linear_2")
EXPERTS, ABSORBED = "experts", "kv_b_proj"

MERGE = "merge the adapter into the weights instead (kimi-serve merge-lora)"

_ROUTED = re.compile(r"(\.mlp\.experts)\.\d+\.\w+$")
_TOWER_ATTENTION = re.compile(r"(vision_tower\.encoder\.blocks\.\d+)\.(wqkv|wo)$")
_TENSOR = re.compile(r"(?P<module>.+)(?P<half>\.lora_[AB]\.weight)")
_WORKERS = {"cpu": "kimi_serve.model.cpu_worker.CpuWorker", "cuda": "kimi_serve.model.worker.GpuWorker"}


def configure(vllm_config: VllmConfig, lora: LoRAConfig) -> None:
    """Name the layers that take adapters, and the worker that reads an adapter before vLLM does.

    Without names vLLM would wrap the router too, whose scores would then no longer be float32.
    """
    multimodal = vllm_config.model_config.multimodal_config
    if lora.enable_tower_connector_lora and multimodal is not None and multimodal.mm_encoder_tp_mode == "data":
        raise ConfigError(
            "--enable-tower-connector-lora: does not go with --mm-encoder-tp-mode data: ranks see different images"
        )
    able = able_modules(vllm_config)
    if lora.target_modules is None:
        lora.target_modules = list(able)
    for target in lora.target_modules:
        if _layer(target) not in able:
            raise ConfigError(
                f"--lora-target-modules: {target!r} takes no adapter here; these do: {', '.join(sorted(able))}"
            )
    device = "cpu" if current_platform.is_cpu() else "cuda" if current_platform.is_cuda_alike() else ""
    if vllm_config.parallel_config.worker_cls == "auto" and device:
        vllm_config.parallel_config.worker_cls = _WORKERS[device]


def able_modules(vllm_config: VllmConfig) -> tuple[str, ...]:
    """The last parts of the names of layers that can take an adapter in this engine."""
    assert vllm_config.lora_config is not None
    able: tuple[str, ...] = DECODER
    if not vllm_config.model_config.use_mla:
        able += (ABSORBED,)
    if not current_platform.is_cpu():  # vLLM has kernels for adapted experts on GPUs only
        able += (EXPERTS,)
    if adapts_tower(vllm_config):
        able += TOWER
    return able


def adapts_tower(vllm_config: VllmConfig) -> bool:
    return vllm_config.lora_config is not None and vllm_config.lora_config.enable_tower_connector_lora


def _layer(name: str) -> str:
    last = name.rpartition(".")[2]
    return next((packed for packed, parts in PACKED.items() if last in parts), last)


def without_adapters(vllm_config: VllmConfig) -> AbstractContextManager[None]:
    """In this context routed experts are built as if adapters were off, on CPUs.

    vLLM 0.32 takes Triton's experts wherever adapters are on, and CPUs cannot run those.
    """
    if vllm_config.lora_config is None or not current_platform.is_cpu():
        return nullcontext()
    plain = copy(vllm_config)
    plain.lora_config = None
    return set_current_vllm_config(plain)


@dataclass(frozen=True, slots=True)
class Served:
    """Which modules of an adapter this engine applies."""

    linears: frozenset[str]  # of the base, as the checkpoint names them
    targets: tuple[str, ...]
    able: tuple[str, ...]

    @classmethod
    def of(cls, vllm_config: VllmConfig, model: ModelConfig) -> "Served":
        assert vllm_config.lora_config is not None
        targets = tuple(vllm_config.lora_config.target_modules or ())
        return cls(frozenset(linears_of(model)), targets, able_modules(vllm_config))

    def check(self, module: str) -> None:
        """Raise AdapterError unless the module is adapted here, as the adapter says."""
        if module not in self.linears:
            raise AdapterError(f"{module}: the base has no such linear")
        if not is_in_target_modules(our_name(module), list(self.targets), PACKED):
            raise AdapterError(f"{module}: {self._why_not(module)}")

    def _why_not(self, module: str) -> str:
        layer = our_name(module).rpartition(".")[2]
        if layer in self.able:
            return f"--lora-target-modules leaves it out; add {layer}, or {MERGE}"
        if layer == EXPERTS:
            return f"routed experts take no adapter on CPUs; {MERGE}"
        if layer == ABSORBED:
            return f"its weight is absorbed into the attention over cached latents; {MERGE}"
        if layer in TOWER:
            return f"tower and projector take one with --enable-tower-connector-lora only; add it, or {MERGE}"
        return f"it takes no adapter in this engine; {MERGE}"


def our_name(module: str) -> str:
    """The layer of our model that holds a checkpoint's module."""
    module = _ROUTED.sub(r"\1", _TOWER_ATTENTION.sub(r"\1.attn.\2", module))
    root, _, last = module.rpartition(".")
    return f"{root}.{_layer(last)}"


@dataclass(frozen=True, slots=True)
class AdapterNames:
    """What vLLM asks what each tensor of an adapter is called in the model: the last moment to refuse one."""

    served: Served

    def get_rename_mapper(self) -> "AdapterNames":
        return self

    def _map_name(self, name: str) -> str:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise AdapterError(f"the adapter holds {name!r}; supported: MODULE.lora_A.weight and MODULE.lora_B.weight")
        self.served.check(match["module"])
        return _TOWER_ATTENTION.sub(r"\1.attn.\2", match["module"]) + match["half"]


def keep_the_base_plain(manager: "LoRAModelManager") -> None:
    """On CPUs, give every adapted layer one more slot, which stays empty.

    vLLM 0.32's kernels for CPUs read slot -1, the last one, for tokens without an adapter: in a batch with adapters the
    base would answer with the last of them. tests/model/test_lora.py fails when that is mended; then this goes.
    """
    if not current_platform.is_cpu():
        return
    for layer in manager.modules.values():
        layer.lora_a_stacked = tuple(_with_empty_slot(stack) for stack in layer.lora_a_stacked)
        layer.lora_b_stacked = tuple(_with_empty_slot(stack) for stack in layer.lora_b_stacked)


def _with_empty_slot(stack: torch.Tensor) -> torch.Tensor:
    """(slots, 1, rows, columns) -> (slots + 1, 1, rows, columns)."""
    return torch.cat([stack, torch.zeros_like(stack[:1])])
