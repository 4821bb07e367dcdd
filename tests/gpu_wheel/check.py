"""What check.sh runs under the GPU wheel: vLLM must resolve Kimi-VL to our classes. Knows names; runs no model."""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path


def main(pack: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, pack / "make_checkpoint.py", folder], check=True, capture_output=True)
        for name, found in resolve(folder).items():
            print(f"{name:14} {found}")
            if not found.startswith("kimi_serve."):
                sys.exit(f"{name}: resolved to {found}, not to kimi_serve")
    print(f"ok: vllm {version('vllm')}, torch {version('torch')}")


def resolve(checkpoint: str) -> dict[str, str]:
    from vllm.config import ModelConfig
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.plugins import load_general_plugins
    from vllm.reasoning import ReasoningParserManager
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers import cached_tokenizer_from_config

    load_general_plugins()
    config = ModelConfig(checkpoint, dtype="bfloat16", max_model_len=4096)
    model, _ = ModelRegistry.resolve_model_cls(config.architectures, config)
    return {
        "model": dotted(model),
        "defaults": dotted(MODELS_CONFIG_MAP[config.architectures[0]]),
        "tokenizer": dotted(type(cached_tokenizer_from_config(config))),
        "renderer": dotted(RENDERER_REGISTRY.load_renderer_cls(config.tokenizer_mode)),
        "processor": dotted(type(MULTIMODAL_REGISTRY.create_processor(config))),
        "reasoning": dotted(ReasoningParserManager.get_reasoning_parser("kimi_vl")),
    }


def dotted(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
