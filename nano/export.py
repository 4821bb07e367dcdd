"""Write a run's weights in the published layout: `python -m nano.export --folder RUN --to DIR`. Trains nothing."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

IN_TOKEN_LIMIT = 1024
SHARDS = 2
BIAS = "e_score_correction_bias"  # stays float32, as the larger models publish it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the run folder of nano.train")
    parser.add_argument("--to", type=Path, default=Path("kimi_serve/assets/kimi-vl-nano"))
    args = parser.parse_args()
    size = export(args.folder, args.to)
    print(json.dumps({"to": str(args.to), "megabytes": round(size / 1e6, 2)}))


def export(run: Path, target: Path) -> int:
    """Bytes of weights written. A README.md in the target is left alone."""
    config = json.loads((run / "config.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer_config.json", "tiktoken.model"):
        shutil.copyfile(run / name, target / name)
    write_json(target / "preprocessor_config.json", preprocessing())
    write_json(target / "generation_config.json", generation(config["vocab_size"] - 256))
    return write_weights(target, rounded(run / "state.pt"))


def rounded(state_file: Path) -> dict[str, Tensor]:
    """The model's tensors by their published names, in bfloat16; the training-only heads stay behind."""
    state = torch.load(state_file, weights_only=True)["model"]
    tensors = {name.removeprefix("0."): t for name, t in state.items() if name.startswith("0.")}
    return {n: (t.float() if n.endswith(BIAS) else t.bfloat16()).contiguous() for n, t in tensors.items()}


def write_weights(target: Path, tensors: dict[str, Tensor]) -> int:
    """The vision part with the first layers in one shard, the rest in another, and the index over both."""
    names = sorted(tensors, key=lambda name: (name.startswith("language_model"), name))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    shards: list[list[str]] = [[] for _ in range(SHARDS)]
    done = 0
    for name in names:
        shards[min(done * SHARDS // total, SHARDS - 1)].append(name)
        done += tensors[name].numel() * tensors[name].element_size()
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        save_file({name: tensors[name] for name in shard}, target / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(target / "model.safetensors.index.json", index)
    return total


def preprocessing() -> dict[str, Any]:
    return {
        "auto_map": {
            "AutoImageProcessor": "image_processing_kimi_vl.KimiVLImageProcessor",
            "AutoProcessor": "processing_kimi_vl.KimiVLProcessor",
        },
        "in_token_limit": IN_TOKEN_LIMIT,
        "patch_size": 14,
        "num_pooled_tokens": 1024,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "pad_input": True,
    }


def generation(base: int) -> dict[str, Any]:
    return {
        "bos_token_id": base,
        "eos_token_id": [base + 1, base + 2],  # [EOS] and <|im_end|>
        "pad_token_id": base + 255,
        "do_sample": True,
        "temperature": 0.2,
        "transformers_version": "4.50.3",
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
