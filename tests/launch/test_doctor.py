"""Each finding of the doctor; tests/stack/test_plugin.py runs the whole of it."""

from pathlib import Path

import pytest

from kimi_serve.launch import doctor
from kimi_serve.launch.machine import Gpu
from tests.launch.conftest import machine
from tests.vllm_host import Host


@pytest.mark.slow
def test_a_plugin_that_is_not_allowed_leaves_another_class_in_use(vllm_host: Host) -> None:
    probe = vllm_host.run("-c", doctor.PROBE, VLLM_PLUGINS="none-of-ours")
    check = doctor.judge_probe(probe.status, probe.stdout, probe.stderr)
    assert not check.ok
    assert check.found.startswith("vllm.model_executor.models.kimi_vl")


@pytest.mark.slow
def test_a_plugin_that_does_not_import_leaves_no_class_in_use(vllm_host: Host) -> None:
    probe = vllm_host.run("-c", f"import sys\nsys.modules['kimi_serve.model.kimi_vl'] = None\n{doctor.PROBE}")
    check = doctor.judge_probe(probe.status, probe.stdout, probe.stderr)
    assert not check.ok
    assert "kimi_serve.model.kimi_vl" in check.found


@pytest.mark.parametrize(("allowed", "ok"), [(None, True), ("kimi_serve", True), ("a,kimi_serve", True), ("a", False)])
def test_the_allow_list_must_name_the_plugin(allowed: str | None, ok: bool) -> None:
    assert doctor.check_allow_list({} if allowed is None else {"VLLM_PLUGINS": allowed}).ok is ok


def test_without_an_engine_the_way_to_install_one_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.machine, "installed_version", lambda _: None)
    check = doctor.check_vllm(machine(engine=None))
    assert not check.ok
    assert "kimi_serve[gpu]" in check.advice


def test_two_builds_of_vllm_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.machine, "installed_version", lambda _: "0.32.0")
    assert not doctor.check_vllm(machine()).ok


def test_a_cuda_torchvision_beside_the_cpu_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torchvision": "0.28.0"}
    monkeypatch.setattr(doctor.machine, "installed_version", versions.get)
    check = doctor.check_shadows(machine())
    assert not check.ok
    assert "pip uninstall torchvision" in check.advice


def test_a_cpu_without_avx2_is_too_old() -> None:
    assert not doctor.check_processor(machine(isa=frozenset())).ok


def test_the_gpu_build_without_a_gpu_is_said() -> None:
    assert not doctor.check_gpus(machine(engine="gpu")).ok
    assert doctor.check_gpus(machine(engine="gpu", gpus=(Gpu("H100", 80 << 30),))).ok


def test_a_model_that_does_not_fit_is_said_with_its_needs(checkpoint: Path) -> None:
    check = doctor.check_model(str(checkpoint), machine(memory_available=1 << 30), {})
    assert not check.ok
    assert "1.0 GiB are free" in check.advice


def test_a_model_that_fits_comes_with_its_flags(checkpoint: Path) -> None:
    check = doctor.check_model(str(checkpoint), machine(), {})
    assert check.ok
    assert "--max-model-len 131072" in check.found


def test_a_failing_check_prints_what_to_do() -> None:
    lines = doctor.report([doctor.Check("memory", ok=False, found="1 GiB", advice="free some")])
    assert lines == ["FAIL  memory        1 GiB", "                     -> free some"]


def test_an_error_is_found_before_what_libraries_print_as_they_end() -> None:
    check = doctor.judge_probe(
        1, "", "Traceback ...\nModuleNotFoundError: no kimi_vl\nnanobind: leaked 3 types!\n - see"
    )
    assert check.found == "ModuleNotFoundError: no kimi_vl"
    assert doctor.judge_probe(1, "", "killed\n").found == "killed"
