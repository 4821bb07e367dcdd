"""vLLM's own Kimi-VL class against ours: the same weights, tokens and pixels give the same logits.

The two share vLLM's layers but no code of the model, and the reference behind the golden pack shares neither: agreement
of all three says that each is right. In float32 they differ by the epsilon of one norm (kv_a_layernorm; 1e-4 here),
far below bfloat16 noise (0.2).
"""

import numpy as np
import pytest

from tests.engine import golden
from tests.engine.conftest import RunEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TOLERANCE = 1e-3


def test_each_engine_ran_its_own_class(results: RunEngine) -> None:
    assert results("in-tree")["model_class"].tolist() == ["vllm.model_executor.models.kimi_vl"]
    assert results("latent")["model_class"].tolist() == ["kimi_serve.model.kimi_vl"]


@pytest.mark.parametrize("name", golden.names())
def test_both_classes_give_the_same_logits(name: str, results: RunEngine) -> None:
    ours, theirs = (results(engine)[f"forced/{name}/logits"] for engine in ("latent", "in-tree"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", golden.names())
def test_both_classes_continue_alike(name: str, results: RunEngine) -> None:
    ours, theirs = (results(engine)[f"forced/{name}/choices"] for engine in ("latent", "in-tree"))
    assert ours.tolist() == theirs.tolist()
