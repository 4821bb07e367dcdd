"""Random weights in Kimi-VL's published layout, quantized as `kimi-serve quantize` stores them. Starts no engine.

Names, shapes, files, index and configuration are the quantizer's own; only the values are drawn, each tensor from the
seed and its name, so that a stopped run goes on with the first file that is not finished and gives the same bytes.

The weights are made so that activations stay finite and the routing spreads: embeddings of size one dominate the
residual, so tokens stay different in every layer; everything else has initializer_range; and scales of int4 have random
signs, since its integers (-8 to 7) have a mean that would otherwise add one common direction to all rows.
"""

import base64
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from kimi_serve.inputs.config import ModelConfig, parse_model_config
from kimi_serve.inputs.headers import INDEX, SIZES, Stored
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.quantize import layout, manifest, scheme
from kimi_serve.quantize.layout import Output, Shard, Task
from kimi_serve.quantize.manifest import Manifest
from kimi_serve.quantize.options import SHARD_BYTES
from kimi_serve.quantize.output import ROOM_TO_SPARE, alone, refuse_without_room
from kimi_serve.quantize.scheme import Scheme
from kimi_serve.quantize.source import DTYPES
from kimi_serve.quantize.writer import write_atomically

REPOSITORY = Path(__file__).resolve().parent.parent
PUBLISHED = REPOSITORY / "tests" / "model" / "full_size_config.json"
NAMED = REPOSITORY / "tests" / "golden" / "checkpoint"  # special tokens by name, and the image processor's settings
BYTE_PAIRS = 163_584  # of the published vocabulary

PIECE = 1 << 22  # values drawn at a time
EMBEDDING_STD = 1.0
INT4_STD, INT8_STD = 4.61, 73.3  # of integers drawn evenly from -8..7 and -127..127
BIAS = "e_score_correction_bias"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the bytes depend on."""

    config: Mapping[str, object]
    scheme: str  # int4 or int8, lm_head included
    seed: int = 0
    shard_bytes: int = SHARD_BYTES

    @property
    def model(self) -> ModelConfig:
        return parse_model_config(self.config)

    @property
    def std(self) -> float:
        text = self.config["text_config"]
        assert isinstance(text, Mapping)
        return float(text["initializer_range"])


def published_config(layers: int | None = None) -> dict[str, object]:
    """The published configuration; with fewer layers in the decoder and in the tower where a rehearsal wants that."""
    config: dict[str, dict[str, object]] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    if layers is not None:
        for part in ("text_config", "vision_config"):
            config[part]["num_hidden_layers"] = layers
    return dict(config)


def write(recipe: Recipe, target: Path) -> None:
    """Make the folder, or go on with `target.partial`; a folder that is there is left as it is."""
    if target.exists():
        return
    chosen, shards = plan(recipe)
    folder = target.with_name(f"{target.name}.partial")
    with alone(folder):
        done = manifest.resume(folder, _made_from(recipe))
        refuse_without_room(folder, _missing(shards, done) + ROOM_TO_SPARE, shutil.disk_usage(folder).free)
        _write_shards(recipe, folder, shards, done)
        _write_settings(recipe, folder, chosen, shards)
        folder.rename(target)


def plan(recipe: Recipe) -> tuple[Scheme, list[Shard]]:
    """What the quantizer would plan for a bfloat16 checkpoint of these shapes."""
    model = recipe.model
    chosen = scheme.choose(model, recipe.scheme, None, lm_head=True, tower=False)
    expected = expected_tensors(model)
    stored = {
        name: Stored(name, "F32" if name.endswith(BIAS) else "BF16", shape, "", 0) for name, shape in expected.items()
    }
    return chosen, layout.plan(stored, expected, chosen, recipe.shard_bytes)


def _made_from(recipe: Recipe) -> dict[str, object]:
    return {
        "scheme": recipe.scheme,
        "seed": recipe.seed,
        "shard_bytes": recipe.shard_bytes,
        "config": recipe.config,
    }


def _missing(shards: list[Shard], done: Manifest) -> int:
    return sum(shard.nbytes for shard in shards if shard.file not in done.finished)


def _write_shards(recipe: Recipe, folder: Path, shards: list[Shard], done: Manifest) -> None:
    total = sum(shard.nbytes for shard in shards)
    often = 0.1 if sys.stderr.isatty() else 30.0  # seconds: a log wants few lines
    with tqdm(total=total, unit="B", unit_scale=True, desc="drawing weights", mininterval=often) as bar:
        bar.update(total - _missing(shards, done))
        for shard in shards:
            if shard.file not in done.finished:
                done.add(shard.file, write_atomically(folder / shard.file, _content(recipe, shard, bar)))


def _content(recipe: Recipe, shard: Shard, bar: "tqdm[None]") -> Iterator[bytes]:
    yield layout.header(shard.outputs)
    for task in shard.tasks:
        for output in task.outputs:
            for part in drawn(recipe, task, output):
                yield part
                bar.update(len(part))


def drawn(recipe: Recipe, task: Task, output: Output) -> Iterator[bytes]:
    """One stored tensor's bytes, in pieces."""
    if output.name.endswith("_shape"):
        yield _bytes(torch.tensor(task.source.shape, dtype=torch.int64))
        return
    key = hashlib.sha256(f"{recipe.seed}/{output.name}".encode()).digest()
    random = np.random.Generator(np.random.SFC64(int.from_bytes(key[:16], "little")))
    count = math.prod(output.shape)
    for start in range(0, count, PIECE):
        size = min(PIECE, count - start)
        yield _bytes(_values(recipe, task, output, random, size).to(DTYPES[output.dtype]))


def _values(recipe: Recipe, task: Task, output: Output, random: np.random.Generator, size: int) -> Tensor:
    if task.format is None:
        return _floats(recipe, output.name, random, size)
    if output.name.endswith("_scale"):
        if task.format.bits == 8:
            return torch.full((size,), recipe.std / INT8_STD)
        signs = torch.from_numpy(random.integers(0, 2, size, dtype=np.int8)).float() * 2 - 1
        return signs * (recipe.std / INT4_STD)
    words = random.bit_generator.random_raw(-(-size * SIZES[output.dtype] // 8))
    if task.format.bits == 4:
        return torch.from_numpy(words.view(np.int32)[:size])
    return torch.from_numpy(words.view(np.int8)[:size]).clamp_(min=-127)


def _floats(recipe: Recipe, name: str, random: np.random.Generator, size: int) -> Tensor:
    if "norm" in name.rsplit(".", 2)[-2]:
        return torch.full((size,), 0.0 if name.endswith(".bias") else 1.0)
    std = EMBEDDING_STD if name.endswith("embed_tokens.weight") else recipe.std
    return torch.from_numpy(random.standard_normal(size, dtype=np.float32)).mul_(std)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _write_settings(recipe: Recipe, folder: Path, chosen: Scheme, shards: list[Shard]) -> None:
    _write_json(folder / "config.json", {**recipe.config, "quantization_config": scheme.config_section(chosen)})
    _write_json(folder / INDEX, layout.index(shards))
    for name in ("preprocessor_config.json", "generation_config.json"):
        _write_json(folder / name, _settings(recipe.model, name))
    write_vocabulary(folder)
    write_special_tokens(folder)


def _settings(model: ModelConfig, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((NAMED / name).read_text(encoding="utf-8"))
    if name == "generation_config.json":
        text = model.text
        return found | {
            "bos_token_id": text.bos_token_id,
            "eos_token_id": text.eos_token_id,
            "pad_token_id": text.pad_token_id,
        }
    return found | {"in_token_limit": 4096}


def write_vocabulary(folder: Path) -> None:
    """A stand-in for tiktoken.model of the published size: single bytes, then made-up pairs."""
    tokens = [bytes([i]) for i in range(256)] + [b"\xff" + i.to_bytes(3, "big") for i in range(BYTE_PAIRS - 256)]
    lines = (base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens))
    write_atomically(folder / "tiktoken.model", iter([b"\n".join(lines)]))


def write_special_tokens(folder: Path) -> None:
    """The golden pack's names at the published ids, which follow the published byte pairs."""
    config = json.loads((NAMED / "tokenizer_config.json").read_text(encoding="utf-8"))
    names: dict[str, object] = config["added_tokens_decoder"]
    shift = BYTE_PAIRS - min(map(int, names))
    config["added_tokens_decoder"] = {str(int(i) + shift): token for i, token in names.items()}
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: object) -> None:
    write_atomically(path, iter([f"{json.dumps(value, indent=2)}\n".encode()]))
