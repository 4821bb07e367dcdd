"""Memory as planned: against the published figures, the launcher's own sizes, and what shapes say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kimi_serve.errors import PlanError
from kimi_serve.inputs.config import parse_model_config
from kimi_serve.launch import defaults, flags, footprint, sizes
from kimi_serve.launch.defaults import Wish
from kimi_serve.launch.footprint import BUNDLED
from kimi_serve.launch.machine import Gpu as GpuHere
from kimi_serve.launch.machine import Machine
from kimi_serve.plan import cpu, gpus, memory, subject
from kimi_serve.plan import plan as plans
from kimi_serve.plan.cpu import CpuPlan, NoPlan
from kimi_serve.plan.memory import Service
from kimi_serve.plan.options import Options
from kimi_serve.plan.plan import Plan, SchemePlan
from kimi_serve.plan.weights import Impossible
from tests.model import published
from tests.plan.conftest import MakePlan


def scheme(plan: Plan, name: str) -> SchemePlan:
    return next(each for each in plan.possible if each.weights.scheme == name)


@pytest.mark.parametrize("preset", ["instruct", "thinking", "thinking-2506"])
def test_a_preset_is_the_published_configuration(preset: str) -> None:
    raw = json.loads(published.CONFIG.read_text())
    assert subject.published(preset).checkpoint.model == parse_model_config(raw)  # type: ignore[arg-type]


def test_the_published_figures(make_plan: MakePlan) -> None:
    plan = make_plan()
    assert plan.parameters == 16_407_656_048
    assert plan.footprint.latent_per_token == 31_104
    assert scheme(plan, "bf16").weights.nbytes == 2 * 16_407_656_048


def test_the_documented_sizes_of_quantized_files(make_plan: MakePlan) -> None:
    def gigabytes(name: str, **options: object) -> str:
        return f"{scheme(make_plan(schemes=(name,), **options), name).weights.files / 1e9:.1f}"

    assert gigabytes("int4") == "10.1"
    assert gigabytes("int8") == "17.6"
    assert gigabytes("int4", lm_head=True) == "9.6"
    assert gigabytes("int4", lm_head=True, tower=True) == "9.2"


def test_int4_takes_the_group_that_crosses_no_two_gpus(make_plan: MakePlan) -> None:
    groups = {n: scheme(make_plan(tensor_parallel=n), "int4").weights.group_size for n in (1, 2, 4)}
    assert groups == {1: 128, 2: 64, 4: 32}
    eight = make_plan(tensor_parallel=8).schemes[-1]
    assert isinstance(eight, Impossible)
    assert "8 GPUs share the 1408 inputs of" in eight.why
    with pytest.raises(PlanError, match=r"2 GPUs share the 1408 inputs of .* a group of 128 would cross two"):
        make_plan(tensor_parallel=2, schemes=("int4",), group_size=128)


def test_gpus_that_cannot_share_the_heads_are_refused(make_plan: MakePlan) -> None:
    with pytest.raises(PlanError, match="--tensor-parallel: 3 does not divide num_attention_heads, 16"):
        make_plan(tensor_parallel=3)


def test_two_gpus_hold_their_halves_and_both_the_latents(make_plan: MakePlan) -> None:
    one, two = make_plan(), make_plan(tensor_parallel=2)
    whole, half = (scheme(plan, "bf16") for plan in (one, two))
    assert whole.weights.on_gpu(2) < 0.52 * whole.weights.on_gpu(1)
    assert 2 * whole.weights.on_gpu(2) > whole.weights.on_gpu(1)
    assert half.cache == whole.cache


def test_requests_and_their_cache_grow_by_whole_blocks() -> None:
    assert memory.cache(31_104, 1) == memory.cache(31_104, 128) == 128 * 31_104
    assert memory.cache(31_104, 129, 3) == 3 * 256 * 31_104


def test_a_gpu_serves_as_many_requests_as_its_memory_holds(make_plan: MakePlan) -> None:
    for fit in scheme(make_plan(context=32_768), "bf16").fits:
        fixed = sum(part.nbytes for part in fit.fixed)
        held = [(requests * 256 + 1) * 128 * 31_104 for requests in (fit.requests, fit.requests + 1)]
        if fit.requests:
            assert fixed + held[0] <= fit.usable
        if fit.requests < fit.service.sequences:
            assert fixed + held[1] > fit.usable


def test_short_requests_are_bound_by_the_requests_of_a_step(make_plan: MakePlan) -> None:
    fits = {fit.gpu.name: fit for fit in scheme(make_plan(context=2_048), "int4").fits}
    assert fits["H200"].requests == 1_024
    assert fits["A100 80GB"].requests == 256
    limited = make_plan(context=2_048, sequences=7, gpu="h200")
    assert scheme(limited, "int4").fits[0].requests == 7


def test_full_precision_needs_48_gb_and_int4_16(make_plan: MakePlan) -> None:
    """What the README says of bfloat16."""
    plan = make_plan(context=32_768)
    smallest = {each.weights.scheme: min(f.gpu.memory for f in each.fits if f.requests) for each in plan.possible}
    assert smallest["bf16"] == 48 * gpus.GB
    assert smallest["int4"] <= 20 * gpus.GB


@pytest.mark.parametrize(
    ("asked", "found"),
    [("h100", "H100"), ("NVIDIA H100 NVL", "H100 NVL"), ("rtx-4090", "GeForce RTX 4090"), ("a100-80gb", "A100 80GB")],
)
def test_a_gpu_is_found_however_it_is_spelled(asked: str, found: str) -> None:
    assert [gpu.name for gpu in gpus.choose(Options(gpu=asked), ())] == [found]


def test_a_name_that_several_gpus_have_is_refused_with_them() -> None:
    with pytest.raises(PlanError, match="--gpu: 'a100' is more than one: A100 40GB, A100 80GB"):
        gpus.choose(Options(gpu="a100"), ())
    with pytest.raises(PlanError, match=r"--gpu: 'TPU' is not in the table: .*give its memory with --gpu-memory"):
        gpus.choose(Options(gpu="TPU"), ())


def test_another_gpu_is_planned_by_its_memory() -> None:
    (gpu,) = gpus.choose(Options(gpu_memory=79.6), ())
    assert gpu.memory == int(79.6 * sizes.GIB)


def test_this_machines_gpus_are_in_the_table_with_what_they_report(here: Machine) -> None:
    with_gpu = replace(here, gpus=(GpuHere("NVIDIA H100 80GB HBM3", 81_559 << 20),))
    plan = plans.make(Options(preset="instruct"), with_gpu, {})
    last = scheme(plan, "bf16").fits[-1]
    assert last.gpu.name == "NVIDIA H100 80GB HBM3 (here)"
    assert last.usable == int((81_559 << 20) * 0.92)


def test_everything_but_the_allowance_is_derived(make_plan: MakePlan) -> None:
    parts = scheme(make_plan(), "int8").fixed
    assert [part.name for part in parts if part.kind == "allowance"] == ["allowance"]


def test_more_pictures_a_step_cost_their_pixels_and_features(make_plan: MakePlan) -> None:
    """A pass of the tower is full with half a step's patches, so that four steps' patches hold no more at once."""
    model, needs = subject.published("instruct").checkpoint.model, make_plan().footprint
    service = Service(context=131_072, sequences=256)
    larger = replace(service, step_tokens=4 * service.step_tokens)
    moments = [memory.moments(model, needs, each)[0][0] for each in (service, larger)]
    assert moments[1] - moments[0] == 4 * (larger.step_tokens - service.step_tokens) * (3 * 14 * 14 + 2 * 1152)


ENVIRONMENTS = [{}, {"VLLM_MLA_DISABLE": "1"}, {"VLLM_CPU_KVCACHE_SPACE": "3"}]


@pytest.mark.parametrize("environ", ENVIRONMENTS, ids=str)
@pytest.mark.parametrize("context", [None, 4_096])
@pytest.mark.parametrize("amx", [True, False])
def test_the_cpu_plan_is_what_the_launcher_would_start(
    here: Machine, environ: dict[str, str], context: int | None, amx: bool
) -> None:
    machine = here if amx else replace(here, isa=frozenset({"avx2"}))
    needs = footprint.read(BUNDLED)
    planned = cpu.plan(Options(context=context), needs, machine, environ)
    assert isinstance(planned, CpuPlan)
    asked = () if context is None else ("--max-model-len", str(context))
    argv = defaults.plan(Wish(str(BUNDLED), asked, environ), machine, needs, Path("vllm")).argv
    started = flags.given(argv)
    assert str(planned.context) == started["--max-model-len"]
    assert str(planned.step_tokens) == started["--max-num-batched-tokens"]
    assert str(planned.cache) == started.get("--kv-cache-memory-bytes", str(3 * sizes.GIB))
    assert planned.value_bytes == (4 if started.get("--dtype") == "float32" else 2)
    assert planned.requests >= 1


def test_the_bundled_checkpoint_is_planned_from_its_files(make_plan: MakePlan) -> None:
    plan = make_plan(model=BUNDLED, schemes=("bf16",))
    assert scheme(plan, "bf16").weights.files == footprint.read(BUNDLED).weights
    assert plan.footprint.latent_per_token == footprint.read(BUNDLED).latent_per_token


def test_a_cpu_with_too_little_memory_says_so_as_the_launcher_does(here: Machine) -> None:
    small = replace(here, memory_available=16 << 30)
    plan = plans.make(Options(preset="instruct"), small, {})
    assert isinstance(scheme(plan, "bf16").cpu, NoPlan)
    assert "16.0 GiB are free, the model needs 36.6 GiB" in scheme(plan, "bf16").cpu.why  # type: ignore[union-attr]
    assert isinstance(scheme(plan, "int4").cpu, CpuPlan)


@pytest.mark.parametrize("wrong", ["three", "", "-1"])
def test_a_cache_size_that_is_none_is_said(here: Machine, wrong: str) -> None:
    found = cpu.plan(Options(), footprint.read(BUNDLED), here, {"VLLM_CPU_KVCACHE_SPACE": wrong})
    assert isinstance(found, NoPlan)
    assert "VLLM_CPU_KVCACHE_SPACE" in found.why
