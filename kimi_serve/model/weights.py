"""Where each tensor of a checkpoint goes in the model. Knows vLLM's parameters; inputs/tensors.py has the names."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from vllm.model_executor.layers.fused_moe.layer import fused_moe_make_expert_params_mapping
from vllm.model_executor.model_loader.weight_utils import default_weight_loader, maybe_remap_kv_scale_name
from vllm.model_executor.models.utils import is_pp_missing_parameter

from kimi_serve.errors import CheckpointError
from kimi_serve.inputs.config import ModelConfig
from kimi_serve.inputs.tensors import Shape, expected_tensors

# Checkpoint module -> (our module, shard) where names differ.
_TOWER_ATTENTION = re.compile(r"(vision_tower\.encoder\.blocks\.\d+)\.(wqkv|wo)\b")
_GATE_UP = re.compile(r"\.mlp\.(shared_experts\.)?(gate_proj|up_proj)\b")
_EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)\.")
DECODER = "language_model."
_SHARDS = {"gate_proj": 0, "up_proj": 1}


class Inventory:
    """Checks a stream of tensors against what the configuration promises, and names what is wrong.

    A quantized linear stores packed values and scales instead of one `weight`; those count as its tensor, and only
    vLLM's quantization method knows their shapes.
    """

    def __init__(self, expected: dict[str, Shape], *, quantized: bool, optional: str | None = None) -> None:
        self.expected = expected
        self.quantized = quantized
        self.optional = optional  # names that begin so may be missing
        self._modules = {_module(name) for name in expected}
        self._seen: set[str] = set()

    def check(self, name: str, tensor: torch.Tensor) -> None:
        """Raise CheckpointError unless `name` belongs to the model with this shape."""
        shape = self.expected.get(name)
        if shape is None:
            if not (self.quantized and _module(name) in self._modules):
                raise CheckpointError(f"unexpected tensor {name!r}: the configuration has no place for it")
            self._seen.add(f"{_module(name)}.weight")
            return
        if tuple(tensor.shape) != shape and not (self.quantized and name.endswith(".weight")):
            raise CheckpointError(f"tensor {name!r} has shape {tuple(tensor.shape)}; the configuration says {shape}")
        self._seen.add(name)

    def finish(self) -> None:
        """Raise CheckpointError for the tensors that never came."""
        missing = [name for name in self.expected if name not in self._seen and not self._is_optional(name)]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(f"missing from the checkpoint: {', '.join(missing[:3])}{more}")

    def _is_optional(self, name: str) -> bool:
        return self.optional is not None and name.startswith(self.optional)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class _ExpertSlot:
    """Where vLLM's fused experts keep one matrix of one expert."""

    name_part: str
    param_part: str
    expert: int
    shard: str


class Loader:
    """Puts checkpoint tensors into the model's (fused, sharded, possibly absent) parameters."""

    def __init__(self, model: nn.Module, config: ModelConfig, num_redundant_experts: int = 0) -> None:
        self.model = model
        self.params = dict(model.named_parameters())
        self.loaded: set[str] = set()
        mapping = fused_moe_make_expert_params_mapping(
            model,
            ckpt_gate_proj_name="gate_proj",
            ckpt_down_proj_name="down_proj",
            ckpt_up_proj_name="up_proj",
            num_experts=config.text.n_routed_experts,
            num_redundant_experts=num_redundant_experts,
        )
        self.slots: dict[str, list[_ExpertSlot]] = {}
        for param_part, name_part, expert, shard in mapping:
            self.slots.setdefault(name_part, []).append(_ExpertSlot(name_part, param_part, expert, shard))

    def load(self, name: str, tensor: torch.Tensor) -> None:
        if match := _EXPERT.search(name):
            self._load_expert(name, f"experts.{match[1]}.{match[2]}.", tensor)
        elif match := _GATE_UP.search(name):
            self._load_param(name.replace(match[2], "gate_up_proj"), tensor, _SHARDS[match[2]])
        else:
            self._load_param(_TOWER_ATTENTION.sub(r"\1.attn.\2", name), tensor)

    def _load_expert(self, name: str, part: str, tensor: torch.Tensor) -> None:
        for slot in self.slots[part]:  # several when experts are replicated
            param_name = name.replace(slot.name_part, slot.param_part)
            if is_pp_missing_parameter(param_name, self.model):
                continue
            param = self._find(param_name, name)
            # The loader answers whether the expert lives on this rank.
            if param.weight_loader(
                param, tensor, param_name, shard_id=slot.shard, expert_id=slot.expert, return_success=True
            ):
                self.loaded.add(param_name)

    def _load_param(self, param_name: str, tensor: torch.Tensor, shard: int | None = None) -> None:
        if is_pp_missing_parameter(param_name, self.model):
            return
        if param_name not in self.params:
            remapped = maybe_remap_kv_scale_name(param_name, self.params)
            if remapped is None:
                return
            param_name = remapped
        param = self._find(param_name, param_name)
        loader: Callable[..., None] = param.weight_loader if hasattr(param, "weight_loader") else default_weight_loader
        if shard is None:
            loader(param, tensor)
        else:
            loader(param, tensor, shard)
        self.loaded.add(param_name)

    def _find(self, param_name: str, name: str) -> nn.Parameter:
        if param_name not in self.params:
            raise CheckpointError(f"tensor {name!r} has no parameter {param_name!r} to go to under this quantization")
        return self.params[param_name]


def load_weights(
    model: nn.Module,
    config: ModelConfig,
    weights: Iterable[tuple[str, torch.Tensor]],
    num_redundant_experts: int = 0,
    *,
    encoder_only: bool = False,
) -> set[str]:
    """Load all of `weights`, checked by name and shape; the parameters that were filled.

    With `encoder_only` the model has no decoder, and vLLM leaves out files that hold nothing else.
    Raises CheckpointError naming the first tensor that is unexpected, mis-shaped or missing.
    """
    optional = DECODER if encoder_only else None
    inventory = Inventory(expected_tensors(config), quantized=config.quantization is not None, optional=optional)
    loader = Loader(model, config, num_redundant_experts)
    for name, tensor in weights:
        inventory.check(name, tensor)
        loader.load(name, tensor)
    inventory.finish()
    return loader.loaded
