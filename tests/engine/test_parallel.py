"""Kimi-VL over two processes through real vLLM: equal to the published implementation, however the model is cut."""

import numpy as np
import pytest

from tests.engine import golden
from tests.engine.conftest import RunEngine

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LOGITS_TOLERANCE = 1e-3  # of tests/golden/README.md


@pytest.mark.parametrize("name", golden.names())
@pytest.mark.parametrize("engine", ["tensor-parallel", "pipeline-parallel", "expert-parallel"])
def test_mixed_batch_equals_the_reference(engine: str, name: str, results: RunEngine) -> None:
    npz, found = golden.cases()[name].arrays(), results(engine)
    assert found[f"batch/{name}/ids"].tolist() == npz["greedy_ids"].tolist()
    np.testing.assert_allclose(found[f"batch/{name}/last"], npz["logits"][-1], rtol=0, atol=LOGITS_TOLERANCE)
