"""Quantized checkpoints through real vLLM and our kernels, beside the oracle with the same weights as real numbers.

With float activations (int4-exact) only the order of float32 sums differs, so the golden pack's tolerance for float32
holds. int8 activations round in every layer, and in this random checkpoint a near-tie between experts then goes the
other way: most positions stay close, some do not. The bounds on that noise hold for this checkpoint only.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine import dequantized, golden
from tests.engine.conftest import RunEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

# The longest case takes minutes in the oracle's plain attention and touches no other kernel.
NAMES = [name for name in golden.names() if name != "c7_text_6000"]
TOLERANCE = 1e-3
CLEAR = 2 * TOLERANCE  # a margin that the tolerance cannot turn
MEDIAN_COSINE, SHARE_EQUAL = 0.995, 0.75  # seen: 0.9989 and 0.84 in int4

Expected = Callable[[str], dict[str, golden.Arrays]]


@pytest.fixture(scope="session")
def expected(quantized: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """The oracle's logits and choices with a configuration's weights, by case."""
    done: dict[str, dict[str, golden.Arrays]] = {}

    def compute(name: str) -> dict[str, golden.Arrays]:
        if name not in done:
            model = dequantized.oracle(quantized(name), tmp_path_factory.mktemp("real"))
            done[name] = {case: dequantized.expected(model, golden.cases()[case]) for case in NAMES}
        return done[name]

    return compute


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ["int4-exact", "int4-mixed"])
def test_float_activations_give_the_oracles_logits(
    engine: str, name: str, results: RunEngine, expected: Expected
) -> None:
    """Where a part of a layer is not all in one form, it runs through vLLM's modules: `int4-mixed` has one of each. The
    cache of `int4-exact` holds latents, for which vLLM multiplies kv_b_proj out; that of the others, keys and values.
    """
    found, oracle = results(engine), expected(engine)[name]
    np.testing.assert_allclose(found[f"forced/{name}/logits"], oracle["logits"], rtol=0, atol=TOLERANCE)
    clear = oracle["margins"] > CLEAR
    assert clear.sum() >= golden.STEPS - 2
    np.testing.assert_array_equal(found[f"forced/{name}/choices"][clear], oracle["choices"][clear])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_int8_activations_stay_near_the_oracle(scheme: str, results: RunEngine, expected: Expected) -> None:
    found = results(scheme)
    agreeing, cosines = 0, []
    for name in NAMES:
        oracle, logits = expected(scheme)[name], found[f"forced/{name}/logits"]
        agreeing += (found[f"forced/{name}/choices"] == oracle["choices"]).sum()
        lengths = np.linalg.norm(logits, axis=-1) * np.linalg.norm(oracle["logits"], axis=-1)
        cosines.append((logits * oracle["logits"]).sum(-1) / lengths)
    assert np.median(np.concatenate(cosines)) >= MEDIAN_COSINE
    assert agreeing >= SHARE_EQUAL * golden.STEPS * len(NAMES)
