"""Kimi-VL through real vLLM in float32: equal to the published implementation, whatever is cached, cut or batched.

`latent` runs whole prompts and caches no prefix; `expanded-chunked` cuts prompts and caches prefixes. (With latents the
latter two need AMX, and bfloat16 with it: test_bfloat16.py.)
"""

from pathlib import Path

import numpy as np
import pytest

from tests.engine import golden, long_prompt, many_images
from tests.engine.configurations import CHUNK
from tests.engine.conftest import RunEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

# The tolerances of tests/golden/README.md.
VISION_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-3
ROUTER_GAP = 1e-4  # closer scores than this may choose another expert
ROUTED_SCALE = 2.446  # of the pack's config.json; vLLM's runner multiplies the routed sum by it, not the weights

EVERY = ["latent", "expanded-chunked"]


@pytest.mark.parametrize("name", golden.names())
@pytest.mark.parametrize("engine", EVERY)
def test_logits_equal_the_reference_at_nine_positions(engine: str, name: str, results: RunEngine) -> None:
    expected = golden.cases()[name].arrays()["logits"]
    np.testing.assert_allclose(results(engine)[f"forced/{name}/logits"], expected, rtol=0, atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize("name", golden.names())
@pytest.mark.parametrize("engine", EVERY)
def test_experts_and_their_weights_equal_the_reference(engine: str, name: str, results: RunEngine) -> None:
    npz, found = golden.cases()[name].arrays(), results(engine)
    for layer in (1, 2, 3):
        ids, weights = (found[f"forced/{name}/router_{what}_layer{layer}"] for what in ("ids", "weights"))
        order, clear = ids.argsort(-1), npz[f"router_gap_layer{layer}"] > ROUTER_GAP
        ids = np.take_along_axis(ids, order, -1)
        weights = np.take_along_axis(weights, order, -1) * ROUTED_SCALE
        np.testing.assert_array_equal(ids[clear], npz[f"router_ids_layer{layer}"][clear])
        np.testing.assert_allclose(weights[clear], npz[f"router_weights_layer{layer}"][clear], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", golden.names())
@pytest.mark.parametrize("engine", EVERY)
def test_every_step_of_a_single_request_equals_the_reference(engine: str, name: str, results: RunEngine) -> None:
    expected = golden.cases()[name].arrays()["greedy_ids"]
    assert results(engine)[f"forced/{name}/choices"].tolist() == expected.tolist()


@pytest.mark.parametrize("name", golden.names())
@pytest.mark.parametrize("engine", EVERY)
def test_mixed_batch_gives_what_single_requests_give(engine: str, name: str, results: RunEngine) -> None:
    """All nine cases at once; the reference ran them one at a time."""
    assert_continues(results(engine), "batch", name)


def test_a_prompt_of_16000_tokens_gives_the_references_logits_anywhere(results: RunEngine) -> None:
    found = results("expanded-chunked")
    assert len(found["long/long/step_starts"]) == -(-long_prompt.LENGTH // CHUNK)
    with np.load(long_prompt.EXPECTED) as expected:
        np.testing.assert_allclose(found["long/long/logits"], expected["logits"], rtol=0, atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize("name", golden.names_with_images())
def test_tower_and_projector_rows_equal_the_reference(name: str, results: RunEngine) -> None:
    npz = golden.cases()[name].arrays()
    for what in ("tower_rows", "proj_rows"):
        rows = results("latent")[f"vision/{name}/{what}"]
        np.testing.assert_allclose(rows, npz[what], rtol=0, atol=VISION_TOLERANCE)


@pytest.mark.parametrize("name", golden.names_with_images())
def test_the_references_rows_give_what_their_pictures_give(name: str, results: RunEngine) -> None:
    assert_continues(results("latent"), "rows", name)


def test_rows_that_are_wrong_are_refused_and_the_engine_goes_on(results: RunEngine) -> None:
    found = results("latent")
    assert "image_embeds[1]: rows of 255 numbers are not supported; expected 256" in str(found["rows/narrow/said"])
    assert "image_embeds[0]: row 2 is not finite in float32" in str(found["rows/broken/said"])
    assert "image_embeds: is missing" in str(found["rows/missing/said"])


@pytest.fixture(scope="module")
def of_512(golden_checkpoint: Path) -> many_images.Expected:
    return many_images.reference(golden_checkpoint)


def test_each_of_512_pictures_becomes_the_references_rows(results: RunEngine, of_512: many_images.Expected) -> None:
    expected = np.concatenate(of_512.rows)
    assert closest(expected) > 1000 * VISION_TOLERANCE  # no row can be taken for another
    np.testing.assert_allclose(results("latent")["images/in_turn/projected"], expected, rtol=0, atol=VISION_TOLERANCE)


@pytest.mark.parametrize("order", many_images.orders())
def test_each_of_512_pictures_lands_at_its_own_placeholder(
    order: str, results: RunEngine, of_512: many_images.Expected
) -> None:
    found = results("latent")
    assert found[f"images/{order}/prompt"].tolist() == of_512.prompt(order)
    np.testing.assert_allclose(found[f"images/{order}/given"], of_512.given[order], rtol=0, atol=VISION_TOLERANCE)


def test_logits_after_512_pictures_equal_the_reference(results: RunEngine, of_512: many_images.Expected) -> None:
    found = results("latent")["images/in_turn/last"]
    np.testing.assert_allclose(found, of_512.last, rtol=0, atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize("swap", many_images.SWAPS)
def test_two_of_512_pictures_swapped_change_the_answer(swap: str, results: RunEngine) -> None:
    found = results("latent")
    away = np.abs(found[f"images/{swap}/last"] - found["images/in_turn/last"])
    assert away.max() > 10 * LOGITS_TOLERANCE


def test_chunk_boundary_falls_inside_an_image(results: RunEngine) -> None:
    found = results("expanded-chunked")
    cut = {
        name
        for name, case in golden.cases().items()
        for start in found[f"forced/{name}/step_starts"]
        if any(span.start < start < span.stop for span in case.image_spans())
    }
    # Their images are longer than a chunk, so nothing but a broken test would change this.
    assert {"c4a_over_limit", "c4b_extreme_aspect", "c5_three_images"} <= cut


@pytest.mark.parametrize("name", golden.names())
def test_cached_prefix_gives_what_a_fresh_one_gives(name: str, results: RunEngine) -> None:
    found = results("expanded-chunked")
    assert found[f"again/{name}/cached"] > 0
    assert_continues(found, "again", name)


def test_image_tokens_come_from_the_prefix_cache(results: RunEngine) -> None:
    case = golden.cases()["c4b_extreme_aspect"]
    assert results("expanded-chunked")[f"again/{case.name}/cached"] > case.image_spans()[0].stop - 32


def assert_continues(found: golden.Arrays, pass_: str, name: str) -> None:
    case = golden.cases()[name]
    npz = case.arrays()
    assert found[f"{pass_}/{name}/prompt"].tolist() == case.prompt
    assert found[f"{pass_}/{name}/ids"].tolist() == npz["greedy_ids"].tolist()
    np.testing.assert_allclose(found[f"{pass_}/{name}/last"], npz["logits"][-1], rtol=0, atol=LOGITS_TOLERANCE)


def closest(rows: np.ndarray) -> float:
    """The largest difference between any row and the one most like it."""
    return min(float(np.abs(rows[index + 1 :] - row).max(-1).min()) for index, row in enumerate(rows[:-1]))
