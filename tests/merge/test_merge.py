"""Merged weights are the exact sums, rounded once; everything else of the base comes along bit for bit."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kimi_serve import cli
from kimi_serve.inputs.adapter import linears_of
from kimi_serve.inputs.config import parse_model_config
from kimi_serve.merge import command
from kimi_serve.merge.options import Options
from kimi_serve.quantize import command as quantize
from kimi_serve.quantize.options import Options as QuantizeOptions
from tests.merge.adapters import ROOT, draw, recipe, stored


def exact(base: dict[str, torch.Tensor], adapter: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """The sums in float64, by the tensor's name."""
    sums = {}
    for name, a in adapter.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix(ROOT).removesuffix(".lora_A.weight")
            b = adapter[f"{ROOT}{module}.lora_B.weight"]
            sums[f"{module}.weight"] = base[f"{module}.weight"].double() + scale * (b.double() @ a.double())
    return sums


def assert_merged(made: Path, base: Path, adapter: dict[str, torch.Tensor], scale: float) -> None:
    before, after = stored(base), stored(made)
    assert after.keys() == before.keys()
    wanted = exact(before, adapter, scale)
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        if name not in wanted:
            assert torch.equal(tensor, before[name]), name
            continue
        assert_rounded_once(tensor, wanted[name])


def assert_rounded_once(tensor: torch.Tensor, wanted: torch.Tensor) -> None:
    info = torch.finfo(tensor.dtype)
    half_a_step = info.eps / 2 * (1 + 1e-4)  # torch passes through float32 on the way to sixteen bits
    torch.testing.assert_close(tensor.double(), wanted, rtol=half_a_step, atol=info.smallest_normal * half_a_step)


@settings(max_examples=8, deadline=None)
@given(
    rank=st.integers(1, 65),
    alpha=st.floats(0.25, 64),
    by_root=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
    picked=st.data(),
)
def test_any_rank_scale_and_choice_of_linears_gives_the_float64_sums(
    golden: Path, rank: int, alpha: float, by_root: bool, dtype: torch.dtype, seed: int, picked: st.DataObject
) -> None:
    config = json.loads((golden / "config.json").read_text())
    linears = list(linears_of(parse_model_config(config)))
    chosen = picked.draw(st.sets(st.sampled_from(linears), min_size=1, max_size=12))
    with tempfile.TemporaryDirectory() as folder:
        adapter, target = Path(folder) / "adapter", Path(folder) / "merged"
        tensors = draw(
            adapter, golden, chosen.__contains__, rank=rank, alpha=alpha, seed=seed, dtype=dtype, use_rslora=by_root
        )
        report = json.loads(command.run(Options(golden, adapter, target, check=True)))
        assert (report["rank"], report["merged"]) == (rank, len(chosen))
        assert_merged(target, golden, tensors, alpha / (rank**0.5 if by_root else rank))


def test_the_published_recipe_is_merged_whole(golden: Path, tmp_path: Path) -> None:
    """Every routed expert, shared experts, the dense layer, q_proj and o_proj, as LLaMA-Factory names them."""
    tensors = draw(tmp_path / "adapter", golden, recipe)
    assert any(".experts.7.down_proj." in name for name in tensors)
    assert cli.main(["merge-lora", str(golden), str(tmp_path / "adapter"), str(tmp_path / "merged")]) == 0
    assert_merged(tmp_path / "merged", golden, tensors, 2.0)


def test_the_router_and_all_other_files_stay_the_bases(golden: Path, tmp_path: Path) -> None:
    draw(tmp_path / "adapter", golden)
    command.run(Options(golden, tmp_path / "adapter", tmp_path / "merged"))
    made = tmp_path / "merged"
    config = json.loads((made / "config.json").read_text())
    assert config == json.loads((golden / "config.json").read_text())
    assert config["text_config"]["topk_method"] == "noaux_tc"
    biases = [name for name in stored(made) if name.endswith("e_score_correction_bias")]
    assert biases
    for path in golden.iterdir():
        if path.suffix != ".safetensors" and path.name not in ("config.json", "model.safetensors.index.json"):
            assert (made / path.name).read_bytes() == path.read_bytes()
    files = json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]
    assert files.keys() == stored(golden).keys()


def test_patterns_give_modules_ranks_and_scales_of_their_own(tiny: Path, tmp_path: Path) -> None:
    q, o = "language_model.model.layers.0.self_attn.q_proj", "language_model.model.layers.1.self_attn.o_proj"
    tensors = draw(tmp_path / "adapter", tiny, (q, o).__contains__, rank=4, alpha=8, rank_pattern={}, alpha_pattern={})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config |= {"r": 16, "rank_pattern": {"self_attn.[qo]_proj": 4}, "alpha_pattern": {r"layers\.1\..*": 2}}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    command.run(Options(tiny, tmp_path / "adapter", tmp_path / "merged"))
    for module, scale in ((q, 8 / 4), (o, 2 / 4)):
        pair = {name: tensor for name, tensor in tensors.items() if module in name}
        wanted = exact(stored(tiny), pair, scale)[f"{module}.weight"]
        assert_rounded_once(stored(tmp_path / "merged")[f"{module}.weight"], wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_keep_the_type_that_the_base_stores(tiny: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in stored(tiny).items()}
    save_file(weights, tiny / "model.safetensors", {"format": "pt"})
    tensors = draw(tmp_path / "adapter", tiny)
    command.run(Options(tiny, tmp_path / "adapter", tmp_path / "merged", check=True))
    assert_merged(tmp_path / "merged", tiny, tensors, 2.0)


def test_a_merged_checkpoint_is_quantized_like_any_other(tiny: Path, tmp_path: Path) -> None:
    draw(tmp_path / "adapter", tiny)
    command.run(Options(tiny, tmp_path / "adapter", tmp_path / "merged"))
    report = json.loads(quantize.run(QuantizeOptions(tmp_path / "merged", tmp_path / "int8", "int8", check=True)))
    assert report["relative_error_worst"] < 0.01
    assert not (tmp_path / "int8" / "merge_manifest.json").exists()
