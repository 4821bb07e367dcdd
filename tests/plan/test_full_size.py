"""The full-size plan against vLLM's own accounting of the model that it builds, without memory for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kimi_serve.plan import memory, request, subject, weights
from kimi_serve.plan.memory import Service
from kimi_serve.plan.options import Options
from kimi_serve.plan.weights import Weights
from tests.model import published
from tests.plan.conftest import MakePlan
from tests.vllm_host import Host

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "checkpoint"
IMAGES = (8, 40, 80)  # one pass of the tower, three, and five
PATCHES = 32 * 32  # of one

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

Built = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, vllm_host: Host) -> Built:
    """What a process says that builds the model; each asked for once."""
    folder = tmp_path_factory.mktemp("published")
    published.write(folder, GOLDEN)
    said: dict[tuple[int, bool], dict[str, Any]] = {}

    def build(ranks: int = 1, *, expanded: bool = False) -> dict[str, Any]:
        if (ranks, expanded) not in said:
            arguments = (str(folder), str(ranks), *(map(str, IMAGES) if ranks == 1 and not expanded else ()))
            environment = {"VLLM_MLA_DISABLE": str(int(expanded))}
            ran = vllm_host.run("-m", "tests.plan.full_size", *arguments, timeout=560, **environment)
            assert ran.status == 0, ran.stderr[-4000:]
            said[ranks, expanded] = json.loads(ran.stdout.splitlines()[-1])
        return said[ranks, expanded]

    return build


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_gpu_holds_the_planned_bytes_of_weights(built: Built, ranks: int) -> None:
    options = Options(preset="instruct", schemes=("bf16",), tensor_parallel=ranks)
    (planned,) = weights.plan(options, subject.published("instruct"))
    assert isinstance(planned, Weights)
    assert built(ranks)["parameter_bytes"] == planned.on_gpu(ranks)


def test_vllm_counts_the_planned_bytes_of_cache_a_token(built: Built, make_plan: MakePlan) -> None:
    needs = make_plan().footprint
    assert built()["cache_bytes_a_token"] == needs.latent_per_token == 31_104
    assert built(2)["cache_bytes_a_token"] == needs.latent_per_token
    assert built(expanded=True)["cache_bytes_a_token"] == needs.expanded_per_token


def test_a_prefill_reads_the_planned_rows_of_context(built: Built) -> None:
    assert built()["context_rows"] == memory.rows(Service(context=131_072, sequences=256))


@pytest.mark.parametrize("images", IMAGES)
def test_the_tower_holds_the_planned_bytes(built: Built, images: int) -> None:
    """The pictures have one size, so one stretched table of positions is kept; the plan counts these apart."""
    vision = subject.published("instruct").checkpoint.model.vision
    planned = memory.tower_bytes(vision, images * PATCHES, PATCHES, 1) + 4 * PATCHES * vision.hidden_size
    assert planned <= built()["tower_peaks"][str(images)] < planned + 4096  # where the pictures begin and end


def test_the_limit_of_pictures_is_the_engines(vllm_host: Host) -> None:
    probe = "from kimi_serve.model.processing import MAX_IMAGES; print(MAX_IMAGES)"
    shown = vllm_host.run("-c", probe)
    assert shown.stdout.split()[-1] == str(request.MOST_IMAGES)
