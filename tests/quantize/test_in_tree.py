"""Stock vLLM loads what `kimi-serve quantize` makes: its own class, its own loader, without our plugin."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kimi_serve.quantize import command
from kimi_serve.quantize.options import Options
from tests.vllm_host import Host

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

NANO = Path(__file__).parents[2] / "kimi_serve" / "assets" / "kimi-vl-nano"
VALUES = {"int4": "weight_packed", "int8": "weight"}
LAYER = "language_model.model.layers.2"

Tensors = dict[str, torch.Tensor]


def rename(tensors: Tensors, part: str) -> None:
    tensors[f"{LAYER}.mlp.experts.7.up_proj.{part}s"] = tensors.pop(f"{LAYER}.mlp.experts.7.up_proj.{part}")


def drop(tensors: Tensors, part: str) -> None:
    del tensors[f"{LAYER}.mlp.experts.7.up_proj.{part}"]


def narrow(tensors: Tensors, part: str) -> None:
    name = f"{LAYER}.self_attn.kv_b_proj.{part}"
    tensors[name] = tensors[name][:, 1:].contiguous()


def narrow_an_expert(tensors: Tensors, part: str) -> None:
    name = f"{LAYER}.mlp.experts.0.down_proj.{part}"
    tensors[name] = tensors[name][:, 1:].contiguous()


BREAKING: dict[str, Callable[[Tensors, str], None]] = {
    function.__name__: function for function in (rename, drop, narrow, narrow_an_expert)
}


@dataclass(frozen=True, slots=True)
class Loaded:
    stored: Tensors
    parameters: Tensors
    said: dict[str, dict[str, object]]  # of the checkpoint, "whole", and of its broken copies


@pytest.fixture(scope="module", params=["int4", "int8"])
def loaded(request: pytest.FixtureRequest, vllm_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp(request.param)
    whole, parameters = folder / "whole", folder / "parameters.safetensors"
    command.run(Options(NANO, whole, request.param, lm_head=True))
    tensors = {name: tensor for file in whole.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for name, breaking in BREAKING.items():
        shutil.copytree(whole, folder / name, ignore=shutil.ignore_patterns("*.safetensors"))
        broken = dict(tensors)
        breaking(broken, VALUES[request.param])
        save_file(broken, folder / name / "model.safetensors")
    names = ["whole", *BREAKING]
    arguments = (str(parameters), *(str(folder / name) for name in names))
    ran = vllm_host.run("-m", "tests.quantize.in_tree", *arguments, VLLM_PLUGINS="none-of-ours")
    assert ran.status == 0, ran.stderr[-4000:]
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    return Loaded(tensors, load_file(parameters), dict(zip(names, map(json.loads, lines), strict=True)))


def test_every_value_of_every_parameter_comes_from_the_checkpoint(loaded: Loaded) -> None:
    assert loaded.said["whole"] == {"unfilled": []}


def test_every_parameter_holds_the_tensors_of_its_name(loaded: Loaded) -> None:
    met: set[str] = set()
    for name, parameter in loaded.parameters.items():
        sources = sources_of(name)
        met.update(source for fused in sources for source in fused)
        if not name.endswith("_shape"):  # a fused linear keeps one of its parts'
            expected = [torch.cat([loaded.stored[source] for source in fused]) for fused in sources]
            found = parameter.unbind() if len(sources) > 1 else [parameter]
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == other.dtype, name
                assert torch.equal(one[: len(other)], other), name  # vLLM rounds the vocabulary up
    assert met == loaded.stored.keys()


def sources_of(parameter: str) -> list[tuple[str, ...]]:
    """The checkpoint's tensors, in rows of a parameter; fused experts have a list of them, and others one."""
    module, _, part = parameter.rpartition(".")
    if module.endswith(".routed_experts"):
        experts, (fused, _, part) = module.removesuffix(".routed_experts"), part.partition("_")
        parts = {"w13": ("gate", "up"), "w2": ("down",)}[fused]
        return [tuple(f"{experts}.{expert}.{one}_proj.{part}" for one in parts) for expert in range(8)]
    if module.endswith(".gate_up_proj"):
        return [tuple(f"{module.removesuffix('gate_up_proj')}{one}_proj.{part}" for one in ("gate", "up"))]
    return [(parameter,)]


@pytest.mark.parametrize("broken", ["rename", "narrow"])
def test_a_wrong_name_or_shape_is_refused(loaded: Loaded, broken: str) -> None:
    assert "refused" in loaded.said[broken], loaded.said[broken]


@pytest.mark.parametrize(("broken", "fused"), [("drop", "w13"), ("narrow_an_expert", "w2")])
def test_an_expert_that_is_incomplete_leaves_values_unfilled(loaded: Loaded, broken: str, fused: str) -> None:
    """vLLM lets a tensor of an expert be missing or too small: only what it leaves shows it."""
    [name] = loaded.said[broken]["unfilled"]  # type: ignore[misc]
    assert name.startswith(f"{LAYER}.mlp.experts.routed_experts.{fused}_weight")
