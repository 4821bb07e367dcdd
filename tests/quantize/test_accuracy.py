"""What the quantized golden model says. Bounds are stated here, with where they come from.

The golden weights are random: routing there is full of near-ties and errors grow from layer to layer, so much that the
reference itself in bfloat16 reaches a cosine of 0.9944 only, and 12 of 16 greedy tokens are asked of it (the pack's
README). Int8's weights and activations are off by about 0.7 % each, as bfloat16's products are by 0.4 %: it is held to
bfloat16's bounds. Int4's weights are off by 9 %, fourteen times as far, where such a network has lost most of its
greedy tokens; there the bound is only that logits still point the same way, and more so than with weights rounded to
nearest. What int4 does to trained weights is measured on kimi-vl-nano (docs/quantize.md).
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kimi_serve.inputs.config import Checkpoint, load_checkpoint
from kimi_serve.inputs.geometry import Grid
from kimi_serve.inputs.image_processor import ImagePatches
from kimi_serve.quantize.prompts import Prompt
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.scales import round_to_nearest_scale
from kimi_serve.quantize.scheme import Format
from kimi_serve.quantize.source import Weights
from kimi_serve.quantize.states import final_states
from tests.oracle.kimi_vl import KimiVl, from_config, normalise

PACK = Path(__file__).parent.parent / "golden"
CASES = [
    "c1_text_40",
    "c2_one_image_exact",
    "c3_one_image_padded",
    "c4b_extreme_aspect",
    "c5_three_images",
    "c9_multi_turn",
]
FEW = ["c1_text_40", "c3_one_image_padded", "c9_multi_turn"]
Quantized = Callable[..., Path]
Npz = dict[str, np.ndarray]


def case(name: str) -> Npz:
    with np.load(PACK / "cases" / f"{name}.npz") as file:
        return dict(file)


def prompt(npz: Npz) -> Prompt:
    """A case's prompt with its golden continuation."""
    pictures, start = [], 0
    for height, width in npz["image_grid_hws"].tolist() if "image_grid_hws" in npz else []:
        patches = npz["pixel_values_u8"][start : start + height * width]
        pictures.append(ImagePatches(patches, Grid(height, width)))
        start += height * width
    return Prompt((*npz["input_ids"].tolist(), *npz["greedy_ids"].tolist()), tuple(pictures))


@torch.no_grad()
def plain_logits(model: Model, checkpoint: Checkpoint, npz: Npz) -> torch.Tensor:
    return model.linear("language_model.lm_head")(final_states(model, checkpoint, [prompt(npz)]))


@torch.no_grad()
def oracle_logits(model: KimiVl, npz: Npz) -> torch.Tensor:
    asked = prompt(npz)
    rows = [
        model.see(normalise(torch.from_numpy(picture.patches))[None], picture.grid.height, picture.grid.width)[0]
        for picture in asked.pictures
    ]
    logits: torch.Tensor = model.logits(model.hidden(torch.tensor([asked.ids]), torch.cat(rows) if rows else None)[0])
    return logits


def agreement(logits: torch.Tensor, npz: Npz) -> tuple[torch.Tensor, int]:
    """Cosines at the golden positions, and how many greedy steps are the same, teacher forced."""
    cosines = torch.cosine_similarity(logits[npz["logit_positions"]], torch.from_numpy(npz["logits"]), dim=-1)
    steps = logits[len(npz["input_ids"]) - 1 : -1].argmax(-1)
    return cosines, int((steps == torch.from_numpy(npz["greedy_ids"])).sum())


def oracle(golden: Path, read: Callable[[str], torch.Tensor]) -> KimiVl:
    model = from_config(json.loads((golden / "config.json").read_text()))
    model.load_state_dict({name: read(name) for name in model.state_dict()}, strict=True)
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_the_plain_forward_equals_the_reference(golden: Path, name: str) -> None:
    npz = case(name)
    with Weights(golden) as weights:
        logits = plain_logits(Model(weights), load_checkpoint(golden), npz)
    np.testing.assert_allclose(logits[npz["logit_positions"]].numpy(), npz["logits"], rtol=0, atol=1e-3)
    assert agreement(logits, npz)[1] == 16


@pytest.mark.parametrize("more", [{}, {"lm_head": True, "tower": True}], ids=str)
def test_int8_with_int8_activations_stays_within_the_bounds_of_bfloat16(
    golden: Path, quantized: Quantized, more: dict[str, bool]
) -> None:
    same = 0
    with Weights(quantized("int8", **more)) as weights:
        for name in CASES:
            cosines, steps = agreement(plain_logits(Model(weights), load_checkpoint(golden), case(name)), case(name))
            assert float(cosines.min()) >= 0.98, name
            assert float(cosines.mean()) >= 0.995, name
            assert steps >= 12, name
            same += steps
    assert same >= 0.85 * 16 * len(CASES)


def test_the_oracle_on_dequantized_int8_says_what_the_golden_model_says(golden: Path, quantized: Quantized) -> None:
    with Weights(quantized("int8")) as weights:
        model = oracle(golden, Model(weights).tensor)
    for name in FEW:
        cosines, steps = agreement(oracle_logits(model, case(name)), case(name))
        assert float(cosines.mean()) >= 0.995, name
        assert steps >= 12, name


def test_the_oracle_on_dequantized_int4_is_nearer_than_on_weights_rounded_to_nearest(
    golden: Path, quantized: Quantized
) -> None:
    with Weights(quantized("int4")) as weights, Weights(golden) as source:
        made, plain = Model(weights), Model(source)
        ours = oracle(golden, made.tensor)
        nearest = oracle(golden, lambda name: rounded_to_nearest(plain.tensor(name), made.format_of(name)))
    mine = torch.cat([agreement(oracle_logits(ours, case(name)), case(name))[0] for name in FEW])
    theirs = torch.cat([agreement(oracle_logits(nearest, case(name)), case(name))[0] for name in FEW])
    assert float(mine.mean()) >= 0.75
    assert float(mine.min()) >= 0.5
    assert float(mine.mean()) > float(theirs.mean())


def rounded_to_nearest(weight: torch.Tensor, form: Format | None) -> torch.Tensor:
    if form is None:
        return weight
    grouped = weight.view(len(weight), form.groups(weight.shape[1]), -1)
    scale = round_to_nearest_scale(grouped, form, torch.bfloat16)
    return ((grouped / scale).round().clamp(-8, 7) * scale).view_as(weight)
