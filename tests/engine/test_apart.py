"""vLLM's encoder disaggregation with our model: an encoder's process and a decoder's give the tokens of one."""

from pathlib import Path

import numpy as np
import pytest

from tests.engine import golden
from tests.engine.configurations import SHARED
from tests.engine.conftest import ENGINE_TIMEOUT
from tests.engine.golden import Arrays
from tests.vllm_host import Host

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def apart(
    vllm_host: Host, golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Arrays, Arrays, str]:
    """What each of both gave, and what the encoder's engine wrote."""
    folder = tmp_path_factory.mktemp("apart")
    (folder / "rows").mkdir()
    results, log = [], ""
    for role in ("encoder", "decoder"):
        arguments = (role, str(golden_checkpoint), str(folder / "rows"), str(folder / f"{role}.npz"))
        ran = vllm_host.run("-m", "tests.engine.apart", *arguments, timeout=ENGINE_TIMEOUT, **SHARED)
        assert ran.status == 0, f"{role} ended with {ran.status}:\n{ran.stderr[-6000:]}"
        log = log or ran.stdout + ran.stderr
        with np.load(folder / f"{role}.npz") as file:
            results.append(dict(file))
    return results[0], results[1], log


@pytest.mark.parametrize("name", golden.names_with_images())
def test_a_decoder_gives_the_reference_tokens_from_an_encoders_rows(
    apart: tuple[Arrays, Arrays, str], name: str
) -> None:
    assert apart[1][name].tolist() == golden.cases()[name].arrays()["greedy_ids"].tolist()


def test_only_the_encoder_runs_the_tower(apart: tuple[Arrays, Arrays, str]) -> None:
    encoder, decoder, _ = apart
    assert encoder["tower_calls"] > 0
    assert decoder["tower_calls"] == 0


def test_the_encoder_holds_no_decoder_and_reads_no_file_of_one(apart: tuple[Arrays, Arrays, str]) -> None:
    encoder, decoder, log = apart
    assert encoder["decoder_parameters"] == 0
    assert decoder["decoder_parameters"] > 0
    assert "skipped 1/2 safetensors shard(s)" in log


def test_an_encoder_whose_rows_go_nowhere_is_refused_at_the_start(vllm_host: Host, golden_checkpoint: Path) -> None:
    code = f"from vllm import LLM\nLLM({str(golden_checkpoint)!r}, mm_encoder_only=True, enforce_eager=True)"
    ran = vllm_host.run("-c", code, timeout=ENGINE_TIMEOUT, **SHARED)
    assert ran.status != 0
    assert "mm_encoder_only: is not supported without ec_transfer_config" in ran.stdout + ran.stderr
