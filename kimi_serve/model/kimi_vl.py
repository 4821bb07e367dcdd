"""The join: KimiVLForConditionalGeneration as vLLM builds and calls it. Everything it does is elsewhere."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import maybe_prefix
from vllm.model_executor.models.vision import run_dp_sharded_mrope_vision_model
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from kimi_serve.errors import ConfigError
from kimi_serve.inputs.config import parse_image_config, parse_model_config
from kimi_serve.model.decoder import LanguageModel
from kimi_serve.model.lora import PACKED, AdapterNames, Served, adapts_tower, keep_the_base_plain
from kimi_serve.model.moonvit import MoonViT
from kimi_serve.model.processing import KimiVLDummyInputsBuilder, KimiVLMultiModalProcessor, KimiVLProcessingInfo
from kimi_serve.model.projector import Projector
from kimi_serve.model.weights import load_weights

if TYPE_CHECKING:
    from vllm.lora.model_manager import LoRAModelManager


@MULTIMODAL_REGISTRY.register_processor(
    KimiVLMultiModalProcessor, info=KimiVLProcessingInfo, dummy_inputs=KimiVLDummyInputsBuilder
)
class KimiVLForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):
    """Tower, projector and decoder under the checkpoint's top-level names."""

    supports_encoder_tp_data = True
    supports_tower_connector_lora = True
    packed_modules_mapping = PACKED  # vLLM reads it off the class

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality not in ("image", "image_embeds"):
            raise ValueError(f"modality {modality!r} is not supported; supported: image")
        return "<|media_start|>image<|media_content|><|media_pad|><|media_end|>"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config, quant = vllm_config.model_config, vllm_config.quant_config
        self.config = model_config.hf_config  # vLLM's adapters ask for it
        self.vllm_config = vllm_config
        self.model_config = parse_model_config(model_config.hf_config.to_dict())
        image_config = parse_image_config(model_config.hf_image_processor_config)
        vision, text = self.model_config.vision, self.model_config.text
        _refuse_adapted_rows(vllm_config)
        _refuse_rows_for_nobody(vllm_config)
        self.num_redundant_experts = vllm_config.parallel_config.eplb_config.num_redundant_experts
        self.encoder_data_parallel = model_config.get_multimodal_config().mm_encoder_tp_mode == "data"
        with self._mark_tower_model(vllm_config, "image"):
            self.vision_tower = MoonViT(
                vision,
                image_config,
                quant,
                maybe_prefix(prefix, "vision_tower"),
                in_order=adapts_tower(vllm_config),
            )
            self.multi_modal_projector = Projector(
                vision, text.hidden_size, quant, maybe_prefix(prefix, "multi_modal_projector")
            )
        with self._mark_language_model(vllm_config):
            self.language_model = LanguageModel(
                vllm_config=vllm_config, text=text, prefix=maybe_prefix(prefix, "language_model")
            )
        self._lora_manager: LoRAModelManager | None = None
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(
        self,
        *,
        pixel_values: torch.Tensor | None = None,
        image_grid_hws: torch.Tensor | None = None,
        image_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, ...]:
        """pixel_values (sum(h*w), 3, p, p) uint8, image_grid_hws (images, 2) -> per image (tokens, text hidden).

        image_embeds are such rows already, and stay what they are.
        """
        if image_embeds is not None:
            return tuple(image_embeds)
        if pixel_values is None or image_grid_hws is None:
            return ()
        tokens = (image_grid_hws.prod(-1) // math.prod(self.model_config.vision.merge_kernel_size)).tolist()
        if self.encoder_data_parallel:
            features = torch.cat(
                run_dp_sharded_mrope_vision_model(
                    self.vision_tower, pixel_values, image_grid_hws.tolist(), rope_type="rope_2d"
                )
            )
        else:
            features = self.vision_tower(pixel_values, image_grid_hws)
        return self.multi_modal_projector(features).split(tokens)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: object,
    ) -> torch.Tensor | IntermediateTensors:
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="multi_modal_projector", tower_model="vision_tower"
        )

    def get_mm_lora_token_counts(
        self, *, modality: str, mm_kwargs: object, num_mm_embeds: int
    ) -> tuple[int, int | None]:
        """Rows that tower and projector see for so many embeddings."""
        return num_mm_embeds * math.prod(self.model_config.vision.merge_kernel_size), num_mm_embeds

    @property
    def lora_manager(self) -> "LoRAModelManager | None":
        return self._lora_manager

    @lora_manager.setter
    def lora_manager(self, manager: "LoRAModelManager") -> None:
        """vLLM sets it when every layer that takes adapters is wrapped."""
        self._lora_manager = manager
        self.hf_to_vllm_mapper = AdapterNames(Served.of(self.vllm_config, self.model_config))
        keep_the_base_plain(manager)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded = load_weights(
            self,
            self.model_config,
            weights,
            self.num_redundant_experts,
            encoder_only=self.vllm_config.is_mm_encoder_only,
        )
        if isinstance(self.vision_tower, MoonViT):  # absent when no image is allowed
            self.vision_tower.patch_embed.pos_emb.forget()
        return loaded


def _refuse_adapted_rows(vllm_config: VllmConfig) -> None:
    """vLLM 0.32 counts a step's rows for the tower's adapters as if all came from one call of the tower."""
    if adapts_tower(vllm_config) and vllm_config.model_config.get_multimodal_config().enable_mm_embeds:
        raise ConfigError(
            "enable_mm_embeds: is not supported with enable_tower_connector_lora; "
            "rows that come in a request pass no adapter of the tower, so leave one of both out"
        )


def _refuse_rows_for_nobody(vllm_config: VllmConfig) -> None:
    if vllm_config.is_mm_encoder_only and vllm_config.ec_transfer_config is None:
        raise ConfigError(
            "mm_encoder_only: is not supported without ec_transfer_config; "
            "the rows that such an engine makes would go nowhere, and it has no decoder to answer with"
        )
