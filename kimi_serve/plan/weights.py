"""Bytes of weights, in files and on each GPU, for each scheme. Knows names and shapes; the quantizer's rules decide.

What is quantized, in which groups and with which scales, is asked of `quantize.scheme` and `quantize.layout`: the code
that writes the files.
"""

import math
from dataclasses import dataclass

from kimi_serve.errors import PlanError, QuantizeError
from kimi_serve.inputs.config import ModelConfig
from kimi_serve.inputs.headers import SIZES
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.plan.options import Options
from kimi_serve.plan.subject import Subject
from kimi_serve.quantize import layout, scheme
from kimi_serve.quantize.layout import Output
from kimi_serve.quantize.options import GROUP_SIZES, SHARD_BYTES

VOCABULARY_STEP = 64  # vLLM pads embedding and head to whole multiples

# How vLLM's layers share a weight among GPUs: by rows (the output) or columns (the input); what neither names is whole
# on each, and so are the 16 bytes of an int4 weight's weight_shape.
_BY_ROWS = frozenset(
    ("q_proj", "kv_b_proj", "gate_proj", "up_proj", "embed_tokens", "lm_head", "wqkv", "fc0", "linear_1")
)
_BY_COLUMNS = frozenset(("o_proj", "down_proj", "wo", "fc1", "linear_2"))
_SHARED = frozenset(("weight", "weight_packed", "weight_scale"))
_VOCABULARY = frozenset(("embed_tokens", "lm_head"))
_ROUTER = "gate"  # vLLM keeps its tensors in float32, whatever the file says


@dataclass(frozen=True, slots=True)
class Weights:
    scheme: str  # bf16, int8, int4; or stored, for a checkpoint that is quantized already
    group_size: int | None
    tensors: tuple[Output, ...]
    files: int  # bytes on disk, headers included; of the tensors alone where no file is there or would be written

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def on_gpu(self, ranks: int) -> int:
        """Bytes that each of `ranks` GPUs holds, loaded in bfloat16."""
        return sum(_share(tensor, ranks) for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Impossible:
    scheme: str
    why: str


def plan(options: Options, subject: Subject) -> list[Weights | Impossible]:
    """The asked schemes in order. Raise PlanError where none is possible."""
    if subject.is_quantized:
        return [_stored("stored", subject)]
    found: list[Weights | Impossible] = []
    for name in options.schemes:
        try:
            found.append(_stored("bf16", subject) if name == "bf16" else _quantized(name, options, subject))
        except QuantizeError as error:
            found.append(Impossible(name, str(error)))
    reasons = [each.why for each in found if isinstance(each, Impossible)]
    if len(reasons) == len(found):
        raise PlanError(reasons[0])
    return found


def _stored(name: str, subject: Subject) -> Weights:
    tensors = tuple(Output(tensor.name, tensor.dtype, tensor.shape) for tensor in subject.tensors)
    return Weights(name, None, tensors, subject.files or sum(tensor.nbytes for tensor in tensors))


def _quantized(name: str, options: Options, subject: Subject) -> Weights:
    model = subject.checkpoint.model
    group = options.group_size if name == "int4" else None
    if name == "int4" and group is None:
        group = _group_for(model, options.tensor_parallel, lm_head=options.lm_head)
    chosen = scheme.choose(model, name, group, lm_head=options.lm_head, tower=options.tower)
    _check_groups(model, chosen, options.tensor_parallel)
    stored = {tensor.name: tensor for tensor in subject.tensors}
    shards = layout.plan(stored, expected_tensors(model), chosen, SHARD_BYTES)
    tensors = tuple(output for shard in shards for output in shard.outputs)
    return Weights(name, chosen.decoder.group_size, tensors, sum(shard.nbytes for shard in shards))


def _group_for(model: ModelConfig, ranks: int, *, lm_head: bool) -> int | None:
    """The largest group that crosses no two GPUs; None leaves it, and the error, to the quantizer."""
    for size in GROUP_SIZES:
        try:
            _check_groups(model, scheme.choose(model, "int4", size, lm_head=lm_head, tower=False), ranks)
        except QuantizeError:
            continue
        return size
    return None


def _check_groups(model: ModelConfig, chosen: scheme.Scheme, ranks: int) -> None:
    size = chosen.decoder.group_size
    for name, shape in expected_tensors(model).items():
        if size is None or name.split(".")[-2] not in _BY_COLUMNS or chosen.format_of(name) != chosen.decoder:
            continue
        if shape[1] // ranks % size:
            raise QuantizeError(
                f"--tensor-parallel: {ranks} GPUs share the {shape[1]} inputs of {name}, and a group of {size} would "
                "cross two of them"
            )


def check_ranks(model: ModelConfig, ranks: int) -> None:
    """Raise PlanError where vLLM's layers cannot be shared evenly."""
    text, vision = model.text, model.vision
    for name, value in {
        "num_attention_heads": text.num_attention_heads,
        "intermediate_size": text.intermediate_size,
        "moe_intermediate_size": text.moe_intermediate_size,
        "vision_config.num_attention_heads": vision.num_attention_heads,
        "vision_config.intermediate_size": vision.intermediate_size,
        "the vocabulary's padding": VOCABULARY_STEP,
    }.items():
        if value % ranks:
            raise PlanError(f"--tensor-parallel: {ranks} does not divide {name}, {value}")


def _share(tensor: Output, ranks: int) -> int:
    _, layer, kind = tensor.name.rsplit(".", 2)
    rows, *others = tensor.shape
    if layer in _VOCABULARY and kind in _SHARED:
        rows = -(-rows // VOCABULARY_STEP) * VOCABULARY_STEP
    is_shared = layer in _BY_ROWS and (kind in _SHARED or kind == "bias")
    # A scale of a whole row belongs to each share of that row.
    is_shared |= layer in _BY_COLUMNS and kind in _SHARED and others[0] > 1
    return rows * math.prod(others) * _loaded_size(tensor, layer) // (ranks if is_shared else 1)


def _loaded_size(tensor: Output, layer: str) -> int:
    if layer == _ROUTER:
        return 4
    if tensor.dtype in layout.FLOATS and not tensor.name.endswith("_scale"):
        return 2
    return SIZES[tensor.dtype]
