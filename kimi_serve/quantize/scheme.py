"""Which tensors become integers, and how config.json says so. Knows names and shapes; never a value.

The section written is the public compressed-tensors one. Modules are ignored by pattern, so that the names of vLLM's
fused layers (gate_up_proj, experts) and of the parts that they are made of are judged alike.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kimi_serve.errors import QuantizeError
from kimi_serve.inputs.config import ModelConfig
from kimi_serve.inputs.tensors import Shape, expected_tensors
from kimi_serve.quantize.options import GROUP_SIZES

_TOWER = r"^vision_tower\."
_PROJECTOR = r"^multi_modal_projector\."
_ROUTER = r"^language_model\..*\.mlp\.gate$"
_LM_HEAD = r"^language_model\.lm_head$"

_DECODER_LINEAR = re.compile(
    r"language_model\.model\.layers\.\d+\."
    r"(self_attn\.(q_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)|mlp\.(\w+\.)*?(\d+\.)?(gate|up|down)_proj)\.weight"
)
_TOWER_LINEAR = re.compile(r"vision_tower\.encoder\.blocks\.\d+\.(wqkv|wo|mlp\.fc0|mlp\.fc1)\.weight")
_LM_HEAD_WEIGHT = "language_model.lm_head.weight"


@dataclass(frozen=True, slots=True)
class Format:
    """How one weight is stored: symmetric integers, and a scale for each row or each group of a row."""

    bits: int
    group_size: int | None  # None: a row has one scale
    quantizes_activations: bool

    @property
    def lowest(self) -> int:
        # -128 is left out: kernels that multiply by a sign cannot negate it, and one level of 256 is worth nothing.
        return -8 if self.bits == 4 else -127

    @property
    def highest(self) -> int:
        return 7 if self.bits == 4 else 127

    def groups(self, width: int) -> int:
        return 1 if self.group_size is None else width // self.group_size


INT8 = Format(bits=8, group_size=None, quantizes_activations=True)


def int4(group_size: int) -> Format:
    return Format(bits=4, group_size=group_size, quantizes_activations=False)


@dataclass(frozen=True, slots=True)
class Scheme:
    """What is done to each weight; what it does not name stays as it is."""

    decoder: Format
    lm_head: bool
    tower: bool

    def format_of(self, name: str) -> Format | None:
        if _DECODER_LINEAR.fullmatch(name) or (self.lm_head and name == _LM_HEAD_WEIGHT):
            return self.decoder
        return INT8 if self.tower and _TOWER_LINEAR.fullmatch(name) else None


def choose(model: ModelConfig, scheme: str, group_size: int | None, *, lm_head: bool, tower: bool) -> Scheme:
    """Raise QuantizeError where no one group size fits: vLLM's fused layers need the same everywhere."""
    if scheme == "int8":
        if group_size is not None:
            raise QuantizeError(f"--group-size: {group_size} with --scheme int8; int8 has one scale a row")
        return Scheme(INT8, lm_head, tower)
    if scheme != "int4":
        raise QuantizeError(f"--scheme: {scheme!r} is not supported; supported: int4, int8")
    widths = _decoder_widths(model, lm_head=lm_head)
    size = group_size or _largest_group(widths)
    for name, width in widths.items():
        if width % size:
            raise QuantizeError(f"--group-size: {size} does not divide {width}, the input size of {name}")
    return Scheme(int4(size), lm_head, tower)


def _decoder_widths(model: ModelConfig, *, lm_head: bool) -> dict[str, int]:
    shapes: dict[str, Shape] = expected_tensors(model)
    return {
        name: shape[1]
        for name, shape in shapes.items()
        if _DECODER_LINEAR.fullmatch(name) or (lm_head and name == _LM_HEAD_WEIGHT)
    }


def _largest_group(widths: dict[str, int]) -> int:
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths.values()):
            return size
    name, width = next((name, width) for name, width in widths.items() if width % GROUP_SIZES[-1])
    raise QuantizeError(f"--scheme int4: {name} has an input size of {width}; it must be a multiple of 32")


def config_section(scheme: Scheme) -> dict[str, object]:
    """quantization_config of config.json."""
    targets = ["Linear"]
    if scheme.lm_head:  # no "Linear" in vLLM's name of its class
        targets.append(f"re:{_LM_HEAD}")
    groups = {"group_0": _group(scheme.decoder, targets)}
    if scheme.tower and scheme.decoder != INT8:
        groups = {"group_0": _group(INT8, [f"re:{_TOWER}"]), "group_1": groups["group_0"]}
    formats = {str(group["format"]) for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": list(_ignored(scheme)),
        "kv_cache_scheme": None,
    }


def _ignored(scheme: Scheme) -> Iterable[str]:
    yield f"re:{_ROUTER}"
    yield f"re:{_PROJECTOR}"
    if not scheme.lm_head:
        yield f"re:{_LM_HEAD}"
    if not scheme.tower:
        yield f"re:{_TOWER}"


def _group(form: Format, targets: list[str]) -> dict[str, object]:
    weights: dict[str, object] = {
        "num_bits": form.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if form.group_size is None else "group",
        "group_size": form.group_size,
        "dynamic": False,
        "actorder": None,
        "observer": "mse",
    }
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": activations if form.quantizes_activations else None,
        "output_activations": None,
        "format": "int-quantized" if form.quantizes_activations else "pack-quantized",
    }
