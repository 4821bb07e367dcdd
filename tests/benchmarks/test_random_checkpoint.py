"""The full-size benchmark's checkpoint, in a tiny configuration: what the quantizer would have written, but drawn."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import gguf, random_checkpoint, token_cost
from benchmarks.random_checkpoint import Recipe
from kimi_serve.errors import QuantizeError
from kimi_serve.inputs.config import load_checkpoint
from kimi_serve.inputs.headers import INDEX
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.inputs.tokenizer import Tokenizer
from kimi_serve.quantize import command, decoder
from kimi_serve.quantize.manifest import NAME
from kimi_serve.quantize.options import Options
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.source import Weights

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "initializer_range": 0.1,  # about one over the root of the width, as 0.02 is for the published one
}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
SHARD = 8 << 20  # four files
PROMPTS = [[1, 2, 3], [70_000, 160_000], [5]]


def recipe(scheme: str, **changes: object) -> Recipe:
    config = random_checkpoint.published_config(layers=3)
    config["text_config"] |= TEXT
    config["vision_config"] |= VISION
    return Recipe(config, scheme, shard_bytes=SHARD, **changes)


@pytest.fixture(scope="module", params=["int4", "int8"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("random") / request.param
    random_checkpoint.write(recipe(request.param), target)
    return target


def stored(folder: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    return {name: (t.dtype, t.shape, t.file) for name, t in Weights(folder).tensors.items()}


def section(folder: Path) -> object:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def test_names_types_shapes_and_files_are_what_the_quantizer_writes(made: Path, tmp_path: Path) -> None:
    source, quantized = tmp_path / "source", tmp_path / "quantized"
    source.mkdir()
    for path in made.iterdir():
        if path.suffix != ".safetensors" and path.name != INDEX:
            (source / path.name).write_bytes(path.read_bytes())
    config = json.loads((made / "config.json").read_text())
    del config["quantization_config"]
    (source / "config.json").write_text(json.dumps(config))
    tensors = {
        name: torch.randn(shape).to(torch.float32 if name.endswith("correction_bias") else torch.bfloat16)
        for name, shape in expected_tensors(load_checkpoint(source).model).items()
    }
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    command.run(Options(source, quantized, made.name, lm_head=True, shard_bytes=SHARD))
    assert stored(made) == stored(quantized)
    assert section(made) == section(quantized)
    assert json.loads((made / INDEX).read_text()) == json.loads((quantized / INDEX).read_text())
    assert len(list(made.glob("*.safetensors"))) > 1


def test_activations_are_finite_and_of_sane_size(made: Path) -> None:
    text = load_checkpoint(made).model.text
    with Weights(made) as weights:
        model = Model(weights)
        x = decoder.embed(model, torch.tensor([token for prompt in PROMPTS for token in prompt]))
        x = decoder.run(model, text, x, [len(prompt) for prompt in PROMPTS])
        logits = model.linear("language_model.lm_head", 0, 4096)(x)
    assert x.isfinite().all()
    assert 0.5 < logits.std() < 2
    assert len(set(logits.argmax(-1).tolist())) == len(logits)  # sequences do not collapse into one


def test_weights_have_the_configured_spread(made: Path) -> None:
    name = "language_model.model.layers.1.mlp.experts.3.up_proj.weight"
    with Weights(made) as weights:
        values = Model(weights).tensor(name)
    assert values.std() == pytest.approx(TEXT["initializer_range"], rel=0.1)
    assert abs(values.mean()) < 0.01


def test_the_tokenizer_reads_its_files(made: Path) -> None:
    vocabulary = load_checkpoint(made).model.text.vocab_size
    tokenizer = Tokenizer.from_directory(made, vocab_size=vocabulary)
    assert tokenizer.decode(tokenizer.encode("Kimi")) == "Kimi"
    assert tokenizer.special_tokens["<|media_pad|>"] == load_checkpoint(made).model.media_placeholder_token_id


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    partial = tmp_path / "again.partial"
    partial.mkdir()
    first, *_, last = sorted(name for name in before if name.endswith(".safetensors"))
    for name in before.keys() - {last, "config.json", INDEX}:
        (partial / name).write_bytes(before[name])
    (partial / first).write_bytes(before[first][:-1])  # cut short: made again
    random_checkpoint.write(recipe(made.name), tmp_path / "again")
    after = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != NAME)  # it tells files in order of finishing
    assert not partial.exists()


def test_a_run_with_another_seed_refuses_what_is_begun(tmp_path: Path, made: Path) -> None:
    partial = tmp_path / "other.partial"
    partial.mkdir()
    (partial / NAME).write_bytes((made / NAME).read_bytes())
    with pytest.raises(QuantizeError, match="was begun with another seed"):
        random_checkpoint.write(recipe(made.name, seed=1), tmp_path / "other")


def test_a_token_costs_every_decoder_byte_but_those_of_experts_not_chosen(made: Path) -> None:
    cost, text = token_cost.cost_of(made), load_checkpoint(made).model.text
    tensors = Weights(made).tensors
    decoding = sum(t.nbytes for n, t in tensors.items() if n.startswith("language_model") and "embed" not in n)
    sparse = token_cost.sparse_layers(text)
    assert sparse == 2
    assert cost.bytes_read(sparse * text.n_routed_experts) == decoding
    assert cost.bytes_read(sparse * text.num_experts_per_tok) < decoding


def test_the_routing_of_last_tokens_is_that_of_a_whole_batch(made: Path) -> None:
    routing = token_cost.routing_of(made, PROMPTS)
    text = load_checkpoint(made).model.text
    assert routing.used(1) == 2 * text.num_experts_per_tok
    assert routing.used(1) < routing.used(3) <= sum(routing.all_tokens)
    assert token_cost.routing_of(made, PROMPTS) == routing  # the kept one
    assert token_cost.routing_of(made, PROMPTS[:2]).tokens == 5  # other prompts are not answered with it


def test_a_gguf_file_holds_every_matrix_of_the_model(made: Path, tmp_path: Path) -> None:
    model, form = load_checkpoint(made).model, gguf.FORMATS[made.name]
    gguf.write(model, form, tmp_path / "model.gguf")
    stored = gguf.tensors(model.text, form)
    content = (tmp_path / "model.gguf").read_bytes()
    assert struct.unpack("<4sIQ", content[:16]) == (b"GGUF", 3, len(stored))
    padded = sum(-(-tensor.nbytes // gguf.ALIGNMENT) * gguf.ALIGNMENT for tensor in stored)
    assert 0 < len(content) - padded < 64 << 10  # names and settings
    values = sum(torch.Size(tensor.shape).numel() for tensor in stored)
    shapes = expected_tensors(model)
    assert values == sum(torch.Size(shape).numel() for name, shape in shapes.items() if name.startswith("language"))
