"""compressed-tensors layers on our CPU kernels. Knows vLLM's parameters and the format; never how a product is made.

The kernels read the checkpoint's own layout, so loading is copying and nothing is repacked. What they do not know
(other bit widths, zero points, activation orders) stays with vLLM's own classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType
from torch import Tensor, nn
from vllm import envs
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEQuantConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsScheme
from vllm.model_executor.parameter import (
    BasevLLMParameter,
    ChannelQuantScaleParameter,
    GroupQuantScaleParameter,
    ModelWeightParameter,
    PackedvLLMParameter,
)
from vllm.model_executor.utils import set_weight_attrs

import kimi_serve.kernels.ops  # noqa: F401  defines torch.ops.kimi_serve
from kimi_serve.errors import KernelError

GROUPS = (32, 64, 128)
VALUES_A_WORD = 8  # int4 in int32


@dataclass(frozen=True, slots=True)
class Form:
    """How one layer's weights are stored."""

    bits: int
    group: int  # int8: 0, a scale a row
    exact: bool  # whether activations stay as they are

    @property
    def suffix(self) -> str:
        return "weight_packed" if self.bits == 4 else "weight"

    @property
    def dtype(self) -> torch.dtype:
        return torch.int32 if self.bits == 4 else torch.int8

    def words(self, columns: int, where: str) -> int:
        if self.group and columns % self.group:
            raise KernelError(f"{where}: {columns} input columns are no multiple of the group {self.group}")
        return columns // VALUES_A_WORD if self.bits == 4 else columns

    def groups(self, columns: int) -> int:
        return columns // self.group if self.group else 1

    def scale_dtype(self, params_dtype: torch.dtype) -> torch.dtype:
        return params_dtype if self.bits == 4 else torch.float32


class CpuCompressedTensors(CompressedTensorsConfig):
    """vLLM's reading of the section; our layers where we have kernels."""

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]

    def get_scheme(self, layer: nn.Module, layer_name: str | None = None) -> CompressedTensorsScheme | None:
        scheme = self.get_scheme_dict(layer, layer_name)
        form = form_of(scheme) if scheme else None
        return super().get_scheme(layer, layer_name) if form is None else CpuLinearScheme(form, layer_name or "")

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        refuse_ranks("--tensor-parallel-size", get_tensor_model_parallel_world_size())
        if isinstance(layer, RoutedExperts):
            refuse_ranks("--data-parallel-size", layer.moe_config.moe_parallel_config.dp_size)
            self._add_fused_moe_to_target_scheme_map()
            scheme = self.get_scheme_dict(layer, f"{prefix}.0.{layer.ckpt_gate_proj_name}")
            form = form_of(scheme) if scheme else None
            if form is not None:
                return CompressedTensorsCpuExperts(form, layer.moe_config, prefix)
        return super().get_quant_method(layer, prefix)


def refuse_ranks(flag: str, ranks: int) -> None:
    """Layers that several ranks share have not been tried with these kernels."""
    if ranks > 1:
        raise KernelError(f"{flag}: {ranks} with quantized weights on a CPU is not supported; supported: 1")


def form_of(scheme: dict[str, Any]) -> Form | None:
    """None where our kernels do not know the scheme."""
    weights, activations = scheme.get("weights"), scheme.get("input_activations")
    if not isinstance(weights, QuantizationArgs) or weights.type != QuantizationType.INT or not weights.symmetric:
        return None
    if weights.num_bits == 4 and activations is None:
        grouped = weights.strategy == QuantizationStrategy.GROUP and weights.group_size in GROUPS
        exact = not envs.VLLM_CPU_INT4_W4A8  # vLLM's own switch; with it, int4 activations become int8
        return Form(4, weights.group_size, exact) if grouped and not weights.actorder else None
    by_token = (
        activations is not None
        and activations.num_bits == 8
        and activations.type == QuantizationType.INT
        and activations.symmetric
        and activations.dynamic
        and activations.strategy == QuantizationStrategy.TOKEN
    )
    is_int8 = weights.num_bits == 8 and weights.strategy == QuantizationStrategy.CHANNEL
    return Form(8, 0, exact=False) if is_int8 and by_token else None


class CpuLinearScheme(CompressedTensorsScheme):
    """One linear, or several whose rows are joined."""

    def __init__(self, form: Form, name: str) -> None:
        self.form = form
        self.name = name

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    def create_weights(
        self,
        layer: nn.Module,
        output_partition_sizes: list[int],
        input_size_per_partition: int,
        params_dtype: torch.dtype,
        weight_loader: Callable[..., None],
        **_: object,
    ) -> None:
        form, rows, columns = self.form, sum(output_partition_sizes), input_size_per_partition
        values = torch.empty(rows, form.words(columns, self.name), dtype=form.dtype)
        scales = torch.empty(rows, form.groups(columns), dtype=form.scale_dtype(params_dtype))
        places = {"input_dim": 1, "output_dim": 0, "weight_loader": weight_loader}
        if form.bits == 4:
            shape = torch.empty(2, dtype=torch.int64)
            layer.register_parameter(
                "weight_packed", PackedvLLMParameter(data=values, packed_dim=1, packed_factor=VALUES_A_WORD, **places)
            )
            layer.register_parameter("weight_scale", GroupQuantScaleParameter(data=scales, **places))
            layer.register_parameter("weight_shape", BasevLLMParameter(data=shape, weight_loader=weight_loader))
        else:
            layer.register_parameter("weight", ModelWeightParameter(data=values, **places))
            layer.register_parameter(
                "weight_scale", ChannelQuantScaleParameter(data=scales, output_dim=0, weight_loader=weight_loader)
            )

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        for name in (self.form.suffix, "weight_scale"):  # torch.compile does not trace vLLM's parameter classes
            layer.register_parameter(name, nn.Parameter(getattr(layer, name).data, requires_grad=False))

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None) -> Tensor:
        form, weight = self.form, getattr(layer, self.form.suffix)
        rows = x.reshape(-1, x.shape[-1])
        y = torch.ops.kimi_serve.linear(rows, weight, layer.weight_scale, form.group, form.exact)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if bias is None else y + bias


class CompressedTensorsCpuExperts(FusedMoEMethodBase):
    """A layer's routed experts, one call a step."""

    def __init__(self, form: Form, moe: FusedMoEConfig, name: str) -> None:
        super().__init__(moe)
        self.form = form
        self.name = name

    def create_weights(
        self,
        layer: RoutedExperts,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **attributes: Any,
    ) -> None:
        form = self.form
        attributes |= {"is_transposed": False, "quant_method": "group" if form.group else "channel"}
        for part, rows, columns in (
            ("w13", 2 * intermediate_size_per_partition, hidden_size),
            ("w2", hidden_size, intermediate_size_per_partition),
        ):
            words = form.words(columns, f"{self.name}.{part}")
            values = torch.empty(num_experts, rows, words, dtype=form.dtype)
            scales = torch.ones(num_experts, rows, form.groups(columns), dtype=form.scale_dtype(params_dtype))
            _register(layer, f"{part}_{form.suffix}", values, attributes)
            _register(layer, f"{part}_weight_scale", scales, attributes)
            if form.bits == 4:
                _register(layer, f"{part}_weight_shape", torch.empty(num_experts, 2), attributes)

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> FusedMoEQuantConfig | None:
        return None  # only vLLM's own kernels ask

    def apply(
        self,
        layer: RoutedExperts,
        x: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        shared_experts: object,
        shared_experts_input: Tensor | None,
    ) -> Tensor:
        """x (tokens, hidden), topk (tokens, top_k) -> (tokens, hidden); vLLM's runner adds the shared experts."""
        form = self.form
        return torch.ops.kimi_serve.experts(
            x,
            topk_ids,
            topk_weights,
            getattr(layer, f"w13_{form.suffix}"),
            layer.w13_weight_scale,
            getattr(layer, f"w2_{form.suffix}"),
            layer.w2_weight_scale,
            form.group,
            form.exact,
        )


def _register(layer: nn.Module, name: str, data: Tensor, attributes: dict[str, Any]) -> None:
    parameter = nn.Parameter(data, requires_grad=False)
    layer.register_parameter(name, parameter)
    set_weight_attrs(parameter, attributes)
