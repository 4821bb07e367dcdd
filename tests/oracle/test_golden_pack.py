"""The oracle against the golden pack in float32. Knows the pack's files; the tolerances are its README's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.oracle.kimi_vl import KimiVl, greedy, load, normalise

PACK = Path(__file__).parent.parent / "golden"
CASES = [
    "c1_text_40",
    "c2_one_image_exact",
    "c3_one_image_padded",
    "c4b_extreme_aspect",
    "c5_three_images",
    "c9_multi_turn",
]
IMAGES = [name for name in CASES if name != "c1_text_40"]
Npz = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> KimiVl:
    target = tmp_path_factory.mktemp("golden")
    subprocess.run([sys.executable, PACK / "make_checkpoint.py", target], check=True, capture_output=True, timeout=60)
    return load(target)


def case(name: str) -> Npz:
    with np.load(PACK / "cases" / f"{name}.npz") as file:
        return dict(file)


@torch.no_grad()
def look(model: KimiVl, npz: Npz) -> tuple[torch.Tensor, torch.Tensor]:
    """Tower rows and projector rows of all images of a case, in order."""
    tower, projected, start = [], [], 0
    for height, width in npz["image_grid_hws"].tolist():
        pixels = normalise(torch.from_numpy(npz["pixel_values_u8"][start : start + height * width]))
        rows = model.vision_tower(pixels[None], height, width)
        tower.append(rows.flatten(0, 2))
        projected.append(model.multi_modal_projector(rows)[0])
        start += height * width
    return torch.cat(tower), torch.cat(projected)


def image_rows(model: KimiVl, npz: Npz) -> torch.Tensor | None:
    return look(model, npz)[1] if "pixel_values_u8" in npz else None


@pytest.mark.parametrize("name", IMAGES)
def test_tower_and_projector_rows_equal_the_reference(model: KimiVl, name: str) -> None:
    npz = case(name)
    tower, projected = look(model, npz)
    for prefix, rows in (("tower_rows", tower), ("proj_rows", projected)):
        if prefix in npz:
            np.testing.assert_allclose(rows.numpy(), npz[prefix], rtol=0, atol=1e-4)
        else:
            np.testing.assert_allclose(rows[:32].numpy(), npz[f"{prefix}_first32"], rtol=0, atol=1e-4)
            np.testing.assert_allclose(rows[-32:].numpy(), npz[f"{prefix}_last32"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_router_choices_equal_the_reference(model: KimiVl, name: str) -> None:
    npz = case(name)
    with torch.no_grad():
        hidden = model.hidden(torch.from_numpy(npz["input_ids"])[None], image_rows(model, npz))
        logits = model.logits(hidden[0, npz["logit_positions"]])
    np.testing.assert_allclose(logits.numpy(), npz["logits"], rtol=0, atol=1e-3)
    for index, layer in enumerate(model.language_model.model.layers):
        if f"router_ids_layer{index}" in npz:
            clear = npz[f"router_gap_layer{index}"] > 1e-4
            chosen = layer.mlp.last_ids[:16].sort(-1).values.numpy()
            np.testing.assert_array_equal(chosen[clear], npz[f"router_ids_layer{index}"][clear])


@pytest.mark.parametrize("name", CASES)
def test_greedy_continuation_equals_the_reference(model: KimiVl, name: str) -> None:
    npz = case(name)
    ids = greedy(model, npz["input_ids"].tolist(), image_rows(model, npz), 16, frozenset())
    assert ids == npz["greedy_ids"].tolist()


def test_padding_on_the_right_changes_no_logit(model: KimiVl) -> None:
    """Training batches are right-padded; the causal mask alone must keep them exact."""
    ids = torch.from_numpy(case("c1_text_40")["input_ids"])
    padded = torch.cat((ids, torch.full((5,), 1279)))[None]
    with torch.no_grad():
        plain, batch = model.hidden(ids[None], None), model.hidden(padded, None)
    torch.testing.assert_close(batch[:, : len(ids)], plain, rtol=0, atol=1e-4)


def test_pack_covers_every_case_named_here() -> None:
    known = {c["id"] for c in json.loads((PACK / "cases.json").read_text())["language_cases"]}
    assert set(CASES) <= known
