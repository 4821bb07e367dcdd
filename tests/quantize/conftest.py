"""What the quantizer's tests share: the golden checkpoint, made once, and what became of it under each scheme."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kimi_serve.inputs.config import parse_model_config
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.quantize import command
from kimi_serve.quantize.options import Options

PACK = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small products gain nothing from threads, and lose much where the machine is busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("golden") / "checkpoint"
    subprocess.run([sys.executable, PACK / "make_checkpoint.py", target], check=True, capture_output=True, timeout=60)
    return target


TINY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
TINY_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint that is quantized in a moment: random weights, and the golden pack's tokenizer and settings."""
    directory = tmp_path / "tiny"
    shutil.copytree(PACK / "checkpoint", directory)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"] |= TINY_TEXT
    config["vision_config"] |= TINY_VISION
    (directory / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=generator) * 0.1).bfloat16()
        for name, shape in expected_tensors(parse_model_config(config)).items()
    }
    (directory / "model.safetensors.index.json").unlink()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def quantized(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The golden checkpoint under a scheme; each is made once."""
    made: dict[tuple[tuple[str, object], ...], Path] = {}

    def quantize(scheme: str, **options: object) -> Path:
        key = (("scheme", scheme), *sorted(options.items()))
        if key not in made:
            target = tmp_path_factory.mktemp("quantized") / scheme
            command.run(Options(golden, target, scheme, **options))  # type: ignore[arg-type]
            made[key] = target
        return made[key]

    return quantize
