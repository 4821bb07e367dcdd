"""What a Kimi-VL checkpoint implies for vLLM's configuration. Knows settings; never weights. User flags always win."""

from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.tokenizers import cached_tokenizer_from_config

from kimi_serve.inputs.config import parse_image_config, parse_model_config
from kimi_serve.inputs.variants import Variant, identify
from kimi_serve.model import stops
from kimi_serve.model.tokenizer import KimiVLTokenizer

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

logger = init_logger("vllm.kimi_serve")  # vLLM shows what is logged under its own name

MODE = "kimi_vl"  # our name in vLLM's tokenizer, renderer and reasoning-parser registries
MODE_WHEN_TOLD = "kimi_vl_when_told"
REASONING_PARSERS = {"always": MODE, "when told": MODE_WHEN_TOLD, "never": ""}


class KimiVLDefaults(VerifyAndUpdateConfig):
    """vLLM calls this for our architecture while it builds its configuration."""

    @staticmethod
    def verify_and_update_model_config(model_config: "ModelConfig") -> None:
        # Refuse an unsupported checkpoint here: before weights, in the first process, by name.
        parse_model_config(model_config.hf_config.to_dict())
        parse_image_config(model_config.hf_image_processor_config)
        if model_config.tokenizer_mode == "auto":
            model_config.tokenizer_mode = MODE
            _judge_multimodality_again(model_config)

    @staticmethod
    def verify_and_update_config(vllm_config: "VllmConfig") -> None:
        model_config = vllm_config.model_config
        if vllm_config.lora_config is not None:
            from kimi_serve.model import lora  # its imports are half of vLLM, and this file is loaded with the plugin

            lora.configure(vllm_config, vllm_config.lora_config)
        limit = parse_image_config(model_config.hf_image_processor_config).geometry.in_token_limit
        variant = identify(str(model_config.model), limit)
        reasoning = vllm_config.structured_outputs_config
        if not reasoning.reasoning_parser:
            reasoning.reasoning_parser = REASONING_PARSERS[variant.thinks]
        _default_temperature(model_config, variant)
        _stop_at_both(model_config)
        logger.info(
            "Kimi-VL %s: reasoning parser %r, images up to %d patches before merging",
            variant.name,
            reasoning.reasoning_parser,
            limit,
        )


def _judge_multimodality_again(model_config: "ModelConfig") -> None:
    """vLLM 0.32 asks our processor whether images are allowed before this hook can name our tokenizer.

    It then tries Transformers' tokenizer, which cannot read this checkpoint, warns of "text-only mode" and remembers.
    """
    model_config._supports_multimodal_inputs_cache = {}
    model_config.model_arch_config = model_config.get_model_arch_config()
    if model_config.supports_multimodal_inputs:
        logger.info("Kimi-VL: images are enabled; the notice of text-only mode above came before our tokenizer")


def _default_temperature(model_config: "ModelConfig", variant: Variant) -> None:
    if model_config.generation_config == "vllm" or "temperature" in model_config.override_generation_config:
        return
    if "temperature" not in model_config.try_get_generation_config():
        model_config.override_generation_config["temperature"] = variant.temperature


def _stop_at_both(model_config: "ModelConfig") -> None:
    tokenizer = cached_tokenizer_from_config(model_config)
    if isinstance(tokenizer, KimiVLTokenizer) and stops.complete(
        model_config, tokenizer.native, tokenizer.eos_token_id
    ):
        logger.info("Kimi-VL: generation_config.json does not name both stop tokens; [EOS] and <|im_end|> hold")
