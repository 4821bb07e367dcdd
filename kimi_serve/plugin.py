"""The vLLM plugin: names for vLLM's registries. Imports nothing of vLLM until vLLM calls it."""

ARCHITECTURE = "KimiVLForConditionalGeneration"
MODEL = "kimi_serve.model.kimi_vl:KimiVLForConditionalGeneration"


def register() -> None:
    """Make vLLM use our model, tokenizer, renderer, defaults and parsers for Kimi-VL. May be called again.

    vLLM runs this in every process and lets what it raises end the process: a broken installation stops here instead of
    serving vLLM's own class of the same architecture name.
    """
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.platforms import current_platform
    from vllm.reasoning import ReasoningParserManager
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.tool_parsers import ToolParserManager

    from kimi_serve.model import cpu_quantization
    from kimi_serve.model.defaults import MODE, MODE_WHEN_TOLD, KimiVLDefaults

    ModelRegistry.register_model(ARCHITECTURE, MODEL)
    MODELS_CONFIG_MAP[ARCHITECTURE] = KimiVLDefaults
    # vLLM warns when a name is registered twice; calling this again is normal.
    if MODE not in TokenizerRegistry.tokenizers:
        TokenizerRegistry.register(MODE, "kimi_serve.model.tokenizer", "KimiVLTokenizer")
        RENDERER_REGISTRY.register(MODE, "kimi_serve.model.renderer", "KimiVLRenderer")
    if current_platform.is_cpu():
        register_quantization_config(cpu_quantization.NAME)(cpu_quantization.CpuQuantization)
    parsers = "kimi_serve.model.reasoning"
    ReasoningParserManager.register_lazy_module(MODE, parsers, "KimiVLReasoningParser")
    ReasoningParserManager.register_lazy_module(MODE_WHEN_TOLD, parsers, "KimiVLWhenToldReasoningParser")
    ToolParserManager.register_lazy_module(MODE, "kimi_serve.model.tools", "KimiVLToolParser")
