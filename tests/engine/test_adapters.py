"""LoRA adapters through real vLLM in float32, beside the oracle with the merged weights.

Two adapters and the base meet in one batch, text and pictures; the adapters reach the tower and the projector too.
The oracle's weights come from `kimi-serve merge-lora` on the pack's checkpoint in float32, so only the order of sums
differs.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.engine import adapted, dequantized, golden
from tests.engine.adapter_sets import LAYER
from tests.engine.conftest import RunEngine
from tests.merge.adapters import stored
from tests.oracle import kimi_vl
from tests.oracle.kimi_vl import KimiVl

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

TOLERANCE = 1e-3
ENGINES = ["adapters-latent", "adapters-expanded"]
WHO = [adapted.BASE, "narrow", "wide"]

Oracle = Callable[[str, str], KimiVl]


@pytest.fixture(scope="session")
def merged(
    golden_checkpoint: Path, adapters: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Oracle:
    """The oracle with an engine's adapter in its weights."""
    plain = tmp_path_factory.mktemp("float32")
    for path in golden_checkpoint.iterdir():
        if path.suffix != ".safetensors" and path.name != "model.safetensors.index.json":
            (plain / path.name).write_bytes(path.read_bytes())
    weights = {name: tensor.float() for name, tensor in stored(golden_checkpoint).items()}
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    made = {}

    def make(engine: str, who: str) -> KimiVl:
        if (engine, who) not in made:
            made[engine, who] = kimi_vl.load(plain if who == adapted.BASE else merge(adapters(engine) / "served" / who))
        return made[engine, who]

    def merge(adapter: Path) -> Path:
        target = tmp_path_factory.mktemp("merged") / adapter.name
        command = [sys.executable, "-m", "kimi_serve.cli", "merge-lora", plain, adapter, target]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
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
