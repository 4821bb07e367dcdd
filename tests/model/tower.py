"""Runs the real tower on this CPU and prints what came out as a JSON line. A process of its own: vLLM keeps state.

python -m tests.model.tower CHECKPOINT   (the golden pack's, with weights)
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks import towers
from kimi_serve.inputs.config import ImageConfig, VisionConfig, load_checkpoint
from kimi_serve.inputs.geometry import Geometry, Grid
from kimi_serve.model.moonvit import POSITION_CACHE_PATCHES, MoonViT
from tests.engine.golden import cases
from tests.oracle import moonvit as oracle
from tests.plan.full_size import Live

VISION = VisionConfig(14, 144, 256, 3, 2, 16, 16, (2, 2))
IMAGE = ImageConfig(Geometry(14, 2, 2, 16_384), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MANY = [Grid(2 * h, 2 * w) for h in range(1, 12) for w in (1, 3, 5, 16)] * 2  # passes of many lengths, some alike
PREFIX = "vision_tower."


def main(checkpoint: str) -> None:
    torch.set_num_threads(1)  # small tensors: threads would mostly wait for one another
    with towers.alone():
        torch.manual_seed(0)
        tower, weights = towers.ours(VISION, IMAGE, torch.float32)
        said = {
            "golden": golden(Path(checkpoint)),
            "patches": sum(grid.num_patches for grid in MANY),
            "from_oracle": from_oracle(tower, weights),
            "from_alone": from_alone(tower),
            "beside": {number: beside(tower, number) for number in (8, 64)},
            "tables": tables(tower),
            "bfloat16": bfloat16(),
        }
    print(json.dumps(said))


def golden(checkpoint: Path) -> dict[str, float]:
    """The largest difference to each case's rows."""
    read = load_checkpoint(checkpoint)
    stored = {k: v for file in checkpoint.glob("*.safetensors") for k, v in load_file(file).items()}

    def fill(name: str, weight: torch.Tensor) -> None:
        weight.copy_(stored[PREFIX + name.replace(".attn.", ".")])

    tower, _ = towers.ours(read.model.vision, read.image, torch.float32, fill)
    found = {}
    for case in cases().values():
        npz = case.arrays()
        if "pixel_values_u8" in npz:
            rows = tower(torch.from_numpy(npz["pixel_values_u8"]), torch.from_numpy(npz["image_grid_hws"]))
            found[case.name] = from_rows(rows.flatten(0, 1).numpy(), npz)
    return found


def from_rows(rows: np.ndarray, npz: dict[str, np.ndarray]) -> float:
    if "tower_rows" in npz:
        return float(np.abs(rows - npz["tower_rows"]).max())
    first, last = npz["tower_rows_first32"], npz["tower_rows_last32"]
    return float(max(np.abs(rows[:32] - first).max(), np.abs(rows[-32:] - last).max()))


def see(tower: torch.nn.Module, patches: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
    return tower(patches, torch.tensor([(grid.height, grid.width) for grid in grids]).reshape(-1, 2))


def drawn(grids: Sequence[Grid]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (sum(grid.num_patches for grid in grids), 3, 14, 14)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def reference(weights: towers.Weights, patches: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
    """The oracle on the same weights, an image at a time."""
    shape = oracle.VisionShape(VISION.hidden_size, VISION.num_attention_heads, VISION.num_hidden_layers,
                               VISION.intermediate_size, 14, 16, 16)  # fmt: skip
    plain = oracle.VisionTower(shape)
    plain.load_state_dict({name.replace(".attn.", "."): w.float() for name, w in weights.items()})
    pixels = (patches.float() / 255 - 0.5) / 0.5
    parts = pixels.split([grid.num_patches for grid in grids])
    seen = [plain(part[None], grid.height, grid.width)[0] for part, grid in zip(parts, grids, strict=True)]
    return torch.cat(seen)


def from_oracle(tower: MoonViT, weights: towers.Weights) -> float:
    patches = drawn(MANY)
    return float((see(tower, patches, MANY) - reference(weights, patches, MANY)).abs().max())


def from_alone(tower: MoonViT) -> float:
    """All together, against each by itself."""
    patches = drawn(MANY)
    parts = patches.split([grid.num_patches for grid in MANY])
    alone = torch.cat([see(tower, part, [grid]) for part, grid in zip(parts, MANY, strict=True)])
    return float((see(tower, patches, MANY) - alone).abs().max())


def beside(tower: MoonViT, images: int) -> int:
    """The most bytes that are held beside pixels and result."""
    grids = [Grid(32, 32)] * images
    patches = drawn(grids)
    live = Live()
    with live:
        seen = see(tower, patches, grids)
    return live.peak - seen.nbytes


def tables(tower: MoonViT) -> dict[str, object]:
    """Stretched tables after a small image, the same again, and more than are kept."""
    positions = tower.patch_embed.pos_emb
    positions.forget()
    once, again = positions(Grid(4, 6)), positions(Grid(4, 6))
    for width in range(2, 200, 2):
        positions(Grid(16, width))
    kept = sum(grid.num_patches for grid in positions._stretched)
    return {"again_is_the_same": once is again, "kept": kept, "most": POSITION_CACHE_PATCHES}


def bfloat16() -> dict[str, float]:
    """How far ours and vLLM's are from the oracle in float32 with the same bfloat16 weights, root mean square."""
    torch.manual_seed(2)
    tower, weights = towers.ours(VISION, IMAGE, torch.bfloat16)
    theirs = towers.in_tree(VISION, weights, torch.bfloat16)
    patches = drawn(MANY)
    pixels = ((patches.float() / 255 - 0.5) / 0.5).bfloat16()
    right = reference(weights, patches, MANY)
    seen = {"ours": see(tower, patches, MANY), "in_tree": torch.cat(see(theirs, pixels, MANY))}
    return {name: float((rows.float() - right).square().mean().sqrt()) for name, rows in seen.items()}


if __name__ == "__main__":
    main(sys.argv[1])
