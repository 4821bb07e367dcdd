"""`kimi-serve plan` and the quantizer agree to the byte: what is planned is what the files hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kimi_serve.inputs.headers import read_header
from kimi_serve.launch.footprint import BUNDLED
from kimi_serve.plan import subject, weights
from kimi_serve.plan.options import Options as Question
from kimi_serve.plan.weights import Weights
from kimi_serve.quantize import command
from kimi_serve.quantize.options import Options

VARIANTS: list[dict[str, Any]] = [
    {"scheme": "int4"},
    {"scheme": "int8"},
    {"scheme": "int4", "lm_head": True, "tower": True},
    {"scheme": "int8", "lm_head": True, "tower": True},
]


def planned(source: Path, scheme: str, **options: Any) -> Weights:
    question = Question(model=source, schemes=(scheme,), **options)  # type: ignore[arg-type]
    (found,) = weights.plan(question, subject.from_directory(source))
    assert isinstance(found, Weights)
    return found


def bytes_of_files(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def bytes_of_tensors(directory: Path) -> int:
    return sum(tensor.nbytes for file in directory.glob("*.safetensors") for tensor in read_header(file))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_planned_bytes_are_written_bytes(golden: Path, quantized: Callable[..., Path], variant: dict[str, Any]) -> None:
    plan, made = planned(golden, **variant), quantized(**variant)
    assert plan.files == bytes_of_files(made)
    assert plan.nbytes == bytes_of_tensors(made)


@pytest.mark.parametrize("lm_head", [False, True])
@pytest.mark.parametrize("tower", [False, True])
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_planned_bytes_are_written_bytes_of_another_shape(
    tiny: Path, tmp_path: Path, scheme: str, tower: bool, lm_head: bool
) -> None:
    target = tmp_path / "target"
    command.run(Options(tiny, target, scheme, lm_head=lm_head, tower=tower))
    plan = planned(tiny, scheme, lm_head=lm_head, tower=tower)
    assert plan.files == bytes_of_files(target)
    assert plan.nbytes == bytes_of_tensors(target)


@pytest.mark.parametrize("directory", ["golden", "bundled"])
def test_what_is_stored_is_planned_as_it_is(golden: Path, directory: str) -> None:
    source = golden if directory == "golden" else BUNDLED
    plan = planned(source, "bf16")
    assert plan.files == bytes_of_files(source)
    assert plan.nbytes == bytes_of_tensors(source)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_quantized_folder_is_planned_as_its_source_under_that_scheme(
    golden: Path, quantized: Callable[..., Path], variant: dict[str, Any]
) -> None:
    made = subject.from_directory(quantized(**variant))
    (stored,) = weights.plan(Question(), made)
    assert isinstance(stored, Weights)
    before = planned(golden, **variant)
    assert stored.scheme == "stored"
    assert (stored.files, stored.nbytes) == (before.files, before.nbytes)
    assert [stored.on_gpu(ranks) for ranks in (1, 2)] == [before.on_gpu(ranks) for ranks in (1, 2)]


def test_a_folder_without_weights_is_planned_in_bfloat16(golden: Path, tmp_path: Path) -> None:
    for file in golden.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors.index.json").unlink(missing_ok=True)
    bare = planned(tmp_path, "bf16")
    assert sorted(t.name for t in bare.tensors) == sorted(t.name for t in planned(golden, "bf16").tensors)
    assert {tensor.dtype for tensor in bare.tensors} == {"BF16"}
