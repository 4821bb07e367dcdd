"""A quantized checkpoint some of whose linears are plain again, as other quantizers leave them. Knows the format."""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.engine.dequantized import int4, real


def make(checkpoint: Path, target: Path, plain: str) -> None:
    """`target`: the int4 checkpoint, with the linears whose names match `plain` in bfloat16."""
    shutil.copytree(checkpoint, target)
    for file in target.glob("*.safetensors"):
        stored = load_file(file)
        save_file(dict(map_plain(stored, re.compile(plain))), file)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"]["ignore"].append(f"re:{plain}")
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors.index.json").unlink(missing_ok=True)  # one file holds all


def map_plain(stored: dict[str, torch.Tensor], plain: re.Pattern[str]) -> list[tuple[str, torch.Tensor]]:
    kept = []
    for name, tensor in stored.items():
        module, _, part = name.rpartition(".")
        if not plain.search(module):
            kept.append((name, tensor))
        elif part == "weight_packed":
            kept.append((f"{module}.weight", real(int4(tensor), stored[f"{module}.weight_scale"]).bfloat16()))
    return kept
