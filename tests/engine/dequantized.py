"""The oracle with a quantized checkpoint's weights as real numbers. Knows the public format; never our kernels."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.engine.golden import STEPS, Case
from tests.oracle.kimi_vl import KimiVl, load, normalise


def oracle(checkpoint: Path, scratch: Path) -> KimiVl:
    write(checkpoint, scratch)
    return load(scratch)  # strict: a tensor too many or too few is an error


def write(checkpoint: Path, target: Path) -> None:
    """The same checkpoint in float32, quantized no more."""
    stored = {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}
    plain = {}
    for name, tensor in stored.items():
        if name.endswith(".weight_packed"):
            weight = name.removesuffix("_packed")
            plain[weight] = real(int4(tensor), stored[f"{weight}_scale"])
        elif tensor.dtype == torch.int8:
            plain[name] = real(tensor, stored[f"{name}_scale"])
        elif not name.endswith(("weight_scale", "weight_shape")):
            plain[name] = tensor.float()
    save_file(plain, target / "model.safetensors", {"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    config.pop("quantization_config", None)
    (target / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "generation_config.json"):
        (target / name).write_bytes((checkpoint / name).read_bytes())


def int4(packed: torch.Tensor) -> torch.Tensor:
    """(rows, words) int32 -> (rows, 8 * words): value i of a word in bits 4i, stored + 8."""
    shifts = torch.arange(0, 32, 4)
    return (((packed.unsqueeze(-1) >> shifts) & 15) - 8).flatten(1)


def real(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    rows, width = integers.shape
    return (integers.view(rows, scale.shape[1], -1).double() * scale.double().unsqueeze(-1)).view(rows, width).float()


@torch.no_grad()
def expected(model: KimiVl, case: Case) -> dict[str, np.ndarray]:
    """Logits and choices where the driver's forced pass looks, given the pack's continuation."""
    npz = case.arrays()
    ids = torch.tensor([*case.prompt, *npz["greedy_ids"].tolist()[:-1]])
    hidden = model.hidden(ids[None], image_rows(model, npz))[0]
    last = len(case.prompt) - 1
    steps = model.logits(hidden[last : last + STEPS])
    top = steps.topk(2, dim=-1).values
    return {
        "logits": model.logits(hidden[npz["logit_positions"]]).numpy(),
        "choices": steps.argmax(-1).numpy(),
        "margins": (top[:, 0] - top[:, 1]).numpy(),
    }


def image_rows(model: KimiVl, npz: dict[str, np.ndarray]) -> torch.Tensor | None:
    if "pixel_values_u8" not in npz:
        return None
    rows, start = [], 0
    for height, width in npz["image_grid_hws"].tolist():
        pixels = normalise(torch.from_numpy(npz["pixel_values_u8"][start : start + height * width]))
        rows.append(model.see(pixels[None], height, width)[0])
        start += height * width
    return torch.cat(rows)
