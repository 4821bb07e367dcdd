"""The real tower on this CPU, without an engine: right whatever is packed, and bounded in memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kimi_serve.inputs.passes import CPU_PATCHES
from tests.vllm_host import Host

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # imports vLLM in a process of its own


@pytest.fixture(scope="module")
def said(golden_pack: Path, tmp_path_factory: pytest.TempPathFactory, vllm_host: Host) -> dict[str, Any]:
    target = tmp_path_factory.mktemp("golden")
    make = [sys.executable, golden_pack / "make_checkpoint.py", target]
    subprocess.run(make, check=True, capture_output=True, timeout=60)
    ran = vllm_host.run("-m", "tests.model.tower", str(target), timeout=560)
    assert ran.status == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_golden_packs_rows_come_out(said: dict[str, Any]) -> None:
    assert len(said["golden"]) >= 3
    assert max(said["golden"].values()) < 1e-4, said["golden"]


def test_many_images_in_several_passes_are_each_what_the_oracle_sees(said: dict[str, Any]) -> None:
    assert said["patches"] > CPU_PATCHES
    assert said["from_oracle"] < 1e-4


def test_an_image_is_the_same_whatever_is_beside_it(said: dict[str, Any]) -> None:
    assert said["from_alone"] < 1e-4


def test_eight_times_the_images_hold_no_more_beside_pixels_and_result(said: dict[str, Any]) -> None:
    few, many = said["beside"]["8"], said["beside"]["64"]
    assert few > 0
    assert many <= few * 1.02


def test_a_table_of_positions_is_stretched_once_and_few_are_kept(said: dict[str, Any]) -> None:
    tables = said["tables"]
    assert tables["again_is_the_same"]
    assert 0 < tables["kept"] <= tables["most"]


def test_bfloat16_weights_lose_no_more_than_in_vllms_tower(said: dict[str, Any]) -> None:
    assert 0 < said["bfloat16"]["ours"] <= 1.1 * said["bfloat16"]["in_tree"]
