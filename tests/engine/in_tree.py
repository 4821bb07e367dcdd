"""vLLM's own class of our architecture name, fed by our processor. Knows both; only for comparison.

Its processor, template and tokenizer are code of the model repository, which Transformers 5 cannot import, so ours
stand in; its tower wants normalised pixels where ours wants bytes.
"""

from collections.abc import Mapping

from transformers import BatchFeature
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.kimi_vl import KimiVLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.plugins import load_general_plugins

from kimi_serve.model.processing import KimiVLDummyInputsBuilder, KimiVLMultiModalProcessor, KimiVLProcessingInfo
from kimi_serve.plugin import ARCHITECTURE


class NormalisingProcessor(KimiVLMultiModalProcessor):
    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        features = super()._call_hf_processor(hf_data, hf_kwargs)
        features["pixel_values"] = (features["pixel_values"].float() / 255 - 0.5) / 0.5
        return features


def use_in_tree_class() -> None:
    """Put vLLM's class back after our plugin has replaced it, in this process."""
    load_general_plugins()
    ModelRegistry.register_model(ARCHITECTURE, KimiVLForConditionalGeneration)
    register = MULTIMODAL_REGISTRY.register_processor(
        NormalisingProcessor, info=KimiVLProcessingInfo, dummy_inputs=KimiVLDummyInputsBuilder
    )
    register(KimiVLForConditionalGeneration)
