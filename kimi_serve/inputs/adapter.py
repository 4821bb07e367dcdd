"""LoRA adapters as PEFT saves them: what their configuration and headers say. Knows no value and no engine.

All that is in the two files is understood or refused by name. PEFT, vLLM and others pass over what they do not know,
and an adapter that is applied in part answers like neither model.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kimi_serve.errors import AdapterError, CheckpointError, ConfigError
from kimi_serve.inputs.config import ModelConfig
from kimi_serve.inputs.fields import Fields
from kimi_serve.inputs.headers import Stored, read_header
from kimi_serve.inputs.tensors import Shape, expected_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."
NO_LINEARS = (".embed_tokens.weight", ".mlp.gate.weight")
FLOATS = ("BF16", "F16", "F32")

Number = TypeVar("Number", int, float)

_NAME = re.compile(rf"{re.escape(ROOT)}(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
# What the ends of other names mean.
_OTHER_ENDS = {
    ".lora_magnitude_vector": "DoRA",
    ".lora_embedding_A": "an adapted embedding",
    ".lora_embedding_B": "an adapted embedding",
    ".lora_B.bias": "a bias beside B",
    ".bias": "a trained bias",
    ".base_layer.weight": "a weight of the base",
}
# Keys of adapter_config.json that steered the training, or where the files come from: nothing that is applied.
_WITHOUT_EFFECT = {
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
_READ = {"alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_rslora"}
# Starts that leave the base's weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ) train against changed ones.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class Pair:
    """What is added to one linear's weight: scale * b @ a."""

    module: str
    a: Stored  # (rank, in)
    b: Stored  # (out, rank)
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    directory: Path
    pairs: Mapping[str, Pair]  # by module, in the model's order

    @property
    def rank(self) -> int:
        """The largest."""
        return max(pair.rank for pair in self.pairs.values())


def read_adapter(directory: Path, model: ModelConfig) -> Adapter:
    """Raise AdapterError for whatever could not be applied to this model as a whole."""
    try:
        return _read(directory, linears_of(model))
    except (AdapterError, ConfigError, CheckpointError) as error:
        raise AdapterError(f"{directory}: {error}") from error


def _read(directory: Path, linears: Mapping[str, Shape]) -> Adapter:
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            raise AdapterError(f"holds no {file}")
    config = _read_config(directory / CONFIG)
    scaling = Scaling.parse(config)
    _refuse_other_parts(config)
    halves = _halves(read_header(directory / WEIGHTS), linears)
    _check_targets(config, linears, halves)
    if not halves:
        raise AdapterError(f"{WEIGHTS} holds no tensor")
    pairs = {module: _pair(module, halves[module], linears[module], scaling) for module in linears if module in halves}
    return Adapter(directory, pairs)


def linears_of(model: ModelConfig) -> dict[str, Shape]:
    """Every module that can be adapted, with (out, in). The router is no linear to PEFT, and the embedding a table."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in expected_tensors(model).items()
        if name.endswith(".weight") and len(shape) == 2 and not name.endswith(NO_LINEARS)
    }


@dataclass(frozen=True, slots=True)
class Scaling:
    """Rank and alpha, for all modules and for those whose names match a pattern."""

    rank: int
    alpha: float
    by_root: bool  # rsLoRA
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    @classmethod
    def parse(cls, config: Fields) -> "Scaling":
        ranks = _patterns(config, "rank_pattern")
        alphas = _patterns(config, "alpha_pattern")
        return cls(
            rank=config.integer("r", at_least=1),
            alpha=config.positive("lora_alpha"),
            by_root=config.boolean("use_rslora", absent=False),
            ranks={key: ranks.integer(key, at_least=1) for key in ranks.raw},
            alphas={key: alphas.positive(key) for key in alphas.raw},
        )

    def rank_of(self, module: str) -> int:
        return _matching(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return _matching(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.by_root else rank)


def _patterns(config: Fields, key: str) -> Fields:
    patterns = config.section(key) if config.stated(key) else Fields(f"{config.name}.{key}", {})
    for pattern in patterns.raw:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{patterns.name}: {pattern!r} is no regular expression: {error}") from error
    return patterns


def _matching(patterns: Mapping[str, Number], module: str, otherwise: Number) -> Number:
    """PEFT's rule: a key matches the end of a name, from a dot on; the first that matches holds."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def _read_config(path: Path) -> Fields:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{CONFIG}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{CONFIG}: expected an object, found {type(raw).__name__}")
    return Fields(CONFIG, raw)


def _refuse_other_parts(config: Fields) -> None:
    """Everything but plain LoRA, and every key that says something nobody here has heard of."""
    config.only("peft_type", "LORA")
    config.only("bias", "none", absent="none")
    start = config.value("init_lora_weights", absent=None)
    if not any(start is known or (isinstance(start, str) and start == known) for known in _STARTS):
        raise ConfigError(
            f"{config.name}.init_lora_weights: {start!r} trains against changed weights of the base; convert the "
            "adapter to a plain one with PEFT (path_initial_model_for_weight_conversion)"
        )
    for key, value in config.raw.items():
        if key not in _READ | _WITHOUT_EFFECT and value:
            raise ConfigError(f"{config.name}.{key}: {_short(value)} is not supported; expected null, false or nothing")


def _halves(stored: Sequence[Stored], linears: Mapping[str, Shape]) -> dict[str, dict[str, Stored]]:
    """The tensors by module and half."""
    found: dict[str, dict[str, Stored]] = {}
    for tensor in stored:
        match = _NAME.fullmatch(tensor.name)
        if match is None:
            raise AdapterError(f"{WEIGHTS}: tensor {tensor.name!r} is not supported{_meaning(tensor.name)}")
        if match["module"] not in linears:
            raise AdapterError(f"{WEIGHTS}: tensor {tensor.name!r}: the base has no linear {match['module']!r}")
        if tensor.dtype not in FLOATS:
            raise AdapterError(
                f"{WEIGHTS}: tensor {tensor.name!r} has dtype {tensor.dtype}; supported: {', '.join(FLOATS)}"
            )
        found.setdefault(match["module"], {})[match["half"]] = tensor
    return found


def _meaning(name: str) -> str:
    known = next((f" ({meaning})" for end, meaning in _OTHER_ENDS.items() if name.endswith(end)), "")
    return f"{known}; supported: {ROOT}MODULE.lora_A.weight and {ROOT}MODULE.lora_B.weight"


def _check_targets(config: Fields, linears: Mapping[str, Shape], halves: Mapping[str, object]) -> None:
    """LLaMA-Factory writes out each module's whole path: one without its tensors was lost on the way."""
    targets = config.raw.get("target_modules")
    if not isinstance(targets, list) or config.raw.get("exclude_modules") or config.raw.get("layers_to_transform"):
        return
    lost = [module for module in linears if module in set(map(str, targets)) and module not in halves]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise AdapterError(f"{CONFIG}.target_modules: names {lost[0]}{more}, of which {WEIGHTS} holds no tensor")


def _pair(module: str, halves: Mapping[str, Stored], shape: Shape, scaling: Scaling) -> Pair:
    for half in "AB":
        if half not in halves:
            raise AdapterError(f"{WEIGHTS}: {ROOT}{module}.lora_{half}.weight is missing; its other half is there")
    rank, (out, width) = scaling.rank_of(module), shape
    for half, expected in (("A", (rank, width)), ("B", (out, rank))):
        tensor = halves[half]
        if tensor.shape != expected:
            raise AdapterError(
                f"{WEIGHTS}: tensor {tensor.name!r} has shape {tensor.shape}; rank {rank} and the base's weight of "
                f"{shape} need {expected}"
            )
    return Pair(module, halves["A"], halves["B"], scaling.scale_of(module))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
