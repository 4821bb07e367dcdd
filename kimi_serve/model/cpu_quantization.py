"""Who takes a quantized Kimi-VL on a CPU: our kernels. Knows config.json's section; loads nothing until it is used.

vLLM 0.32's int4 and int8 experts for CPUs refuse this model's routing, and its linears need AMX or AVX-512. vLLM asks
every registered quantization whether a checkpoint is its own; this one answers for compressed-tensors checkpoints of
our architecture and nothing else. On GPUs it is not registered: there the format is vLLM's own business.
"""

from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from kimi_serve.kernels.library import load

if TYPE_CHECKING:
    from kimi_serve.model.cpu_compressed import CpuCompressedTensors

NAME = "kimi_serve_cpu"
PUBLIC_NAME = "compressed-tensors"
ARCHITECTURE = "KimiVLForConditionalGeneration"


class CpuQuantization(QuantizationConfig):
    """What vLLM's registry holds. It becomes a CpuCompressedTensors when a checkpoint's section is read."""

    @classmethod
    def override_quantization_method(
        cls, hf_quant_cfg: dict[str, Any], user_quant: str | None, hf_config: Any = None
    ) -> str | None:
        ours = hf_config is not None and ARCHITECTURE in (hf_config.architectures or [])
        asked = user_quant in (None, PUBLIC_NAME, NAME)
        if not (ours and asked and hf_quant_cfg.get("quant_method") == PUBLIC_NAME):
            return None
        load()  # without a library vLLM would end with "No WNA16 MoE backend supports ...": say what is missing instead
        return NAME

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CpuCompressedTensors":
        from kimi_serve.model.cpu_compressed import CpuCompressedTensors

        return CpuCompressedTensors.from_config(config)

    def get_name(self) -> str:
        return NAME

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return -1  # of a GPU

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []  # the section is in config.json

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> None:
        raise AssertionError(f"{prefix}: from_config makes another class")
