"""Kimi-VL over two processes through real vLLM: equal to the published implementation, however the model is cut."""

import numpy as np
import pytest

from tests.engine import golden
from tests.engine.configurations import Pass
from tests.engine.conftest import RunEngine
from tests.engine.golden import Arrays

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LOGITS_TOLERANCE = 1e-3  # of tests/golden/README.md


@pytest.mark.parametrize("name", golden.names())
def test_a_batch_cut_by_heads_equals_the_reference(name: str, results: RunEngine) -> None:
    equals_the_reference(results("tensor-parallel"), "batch", name)


@pytest.mark.parametrize("name", [case.name for case in golden.shorter()])
@pytest.mark.parametrize("engine", ["pipeline-parallel", "expert-parallel"])
def test_a_batch_cut_by_layers_or_experts_equals_the_reference(engine: str, name: str, results: RunEngine) -> None:
    equals_the_reference(results(engine), "mixed", name)


def equals_the_reference(found: Arrays, one: Pass, name: str) -> None:
    npz = golden.cases()[name].arrays()
    assert found[f"{one}/{name}/ids"].tolist() == npz["greedy_ids"].tolist()
    np.testing.assert_allclose(found[f"{one}/{name}/last"], npz["logits"][-1], rtol=0, atol=LOGITS_TOLERANCE)
