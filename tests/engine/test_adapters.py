"""LoRA adapters through real vLLM in float32, beside the oracle with the merged weights.

Two adapters and the base meet in one batch, text and pictures; the adapters reach the tower and the projector too.
One engine caches latents; the other has int4 weights on our kernels and caches keys and values, so kv_b_proj is adapted
too. The oracle's weights come from `kimi-serve merge-lora` on the same weights in float32: only the order of sums
differs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kimi_serve.merge import command
from kimi_serve.merge.options import Options
from tests.engine import adapted, dequantized, golden
from tests.engine.adapter_sets import LAYER
from tests.engine.conftest import RunEngine
from tests.oracle import kimi_vl
from tests.oracle.kimi_vl import KimiVl

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TOLERANCE = 1e-3
ENGINES = ["adapters-latent", "adapters-int4"]
WHO = [adapted.BASE, "narrow", "wide"]

Oracle = Callable[[str, str], KimiVl]


@pytest.fixture(scope="session")
def merged(
    quantized: Callable[[str], Path], adapters: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Oracle:
    """The oracle with an engine's adapter in its weights."""
    plain: dict[str, Path] = {}
    made: dict[tuple[str, str], KimiVl] = {}

    def make(engine: str, who: str) -> KimiVl:
        if engine not in plain:
            plain[engine] = tmp_path_factory.mktemp("plain")
            dequantized.write(quantized(engine), plain[engine])
        if (engine, who) not in made:
            made[engine, who] = kimi_vl.load(plain[engine] if who == adapted.BASE else merge(engine, who))
        return made[engine, who]

    def merge(engine: str, who: str) -> Path:
        target = tmp_path_factory.mktemp("merged") / who
        command.run(Options(plain[engine], adapters(engine) / "served" / who, target))
        return target

    return make


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("name", adapted.CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_in_a_mixed_batch_gives_the_merged_weights_logits_and_tokens(
    engine: str, name: str, who: str, results: RunEngine, merged: Oracle
) -> None:
    found = {what: results(engine)[f"adapters/{name}-{who}/{what}"] for what in ("ids", "last")}
    logits = oracle_steps(merged(engine, who), golden.cases()[name], found["ids"].tolist())
    np.testing.assert_allclose(found["last"], logits[0], rtol=0, atol=TOLERANCE)
    top = np.sort(logits, -1)[:, ::-1]
    clear = top[:, 0] - top[:, 1] > 2 * TOLERANCE
    assert clear.sum() >= adapted.STEPS - 1
    np.testing.assert_array_equal(found["ids"][clear], logits.argmax(-1)[clear])


@pytest.mark.parametrize("name", adapted.CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_adapters_of_a_batch_answer_differently(engine: str, name: str, results: RunEngine) -> None:
    last = [results(engine)[f"adapters/{name}-{who}/last"] for who in WHO]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(last[one] - last[other]).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("experts", f"{LAYER}.mlp.experts.0.up_proj: routed experts take no adapter on CPUs; merge the adapter"),
        ("head", "language_model.lm_head: it takes no adapter in this engine; merge the adapter"),
        ("absorbed", f"{LAYER}.self_attn.kv_b_proj: its weight is absorbed into the attention over cached latents"),
        ("dora", "adapter_config.json.use_dora: True is not supported"),
        ("small", f"{LAYER}.self_attn.q_proj.lora_A.weight' has shape (4, 16); rank 4 and the base's weight of"),
    ],
)
def test_what_cannot_be_applied_is_refused_by_name(name: str, words: str, results: RunEngine) -> None:
    assert words in str(results("adapters-latent")[f"adapters/{name}/refusal"])


@torch.no_grad()
def oracle_steps(model: KimiVl, case: golden.Case, ids: list[int]) -> np.ndarray:
    """Logits of each step, given the steps before."""
    rows = dequantized.image_rows(model, case.arrays())
    hidden = model.hidden(torch.tensor([[*case.prompt, *ids[:-1]]]), rows)[0]
    return model.logits(hidden[len(case.prompt) - 1 :]).numpy()
