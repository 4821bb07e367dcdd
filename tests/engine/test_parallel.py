"""Kimi-VL over two processes through real vLLM: equal to the published implementation, however the model is cut."""

import numpy as np
import pytest

from tests.engine import golden
from tests.engine.conftest import RunEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LOGITS_TOLERANCE = 1e-3  # of tests/golden/README.md


@pytest.mark.parametrize("name", [case.name for case in golden.shorter()])
@pytest.mark.parametrize("engine", ["tensor-parallel", "pipeline-parallel", "expert-parallel"])
def test_a_batch_cut_by_heads_layers_or_experts_equals_the_reference(
    engine: str, name: str, results: RunEngine
) -> None:
    found, npz = results(engine), golden.cases()[name].arrays()
    assert found[f"mixed/{name}/ids"].tolist() == npz["greedy_ids"].tolist()
    np.testing.assert_allclose(found[f"mixed/{name}/last"], npz["logits"][-1], rtol=0, atol=LOGITS_TOLERANCE)
