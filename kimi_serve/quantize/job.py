"""Quantizes one checkpoint folder into another: the order of the steps. Knows files; never how a weight is rounded.

All is judged before the first weight is read; stopped at any point, the same command goes on with the first shard that
is not finished.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kimi_serve.errors import QuantizeError
from kimi_serve.inputs.config import Checkpoint, load_checkpoint
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.quantize import layout, manifest, output, scheme
from kimi_serve.quantize.layout import Shard
from kimi_serve.quantize.manifest import Manifest
from kimi_serve.quantize.options import Options
from kimi_serve.quantize.scheme import Scheme
from kimi_serve.quantize.source import Weights
from kimi_serve.quantize.writer import Quantizer


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, judged."""

    options: Options
    checkpoint: Checkpoint
    weights: Weights
    scheme: Scheme
    shards: Sequence[Shard]
    copies: Sequence[Path]

    @property
    def folder(self) -> Path:
        return output.partial(self.options.target)


def prepare(options: Options) -> Plan:
    """Read configuration and headers. Raise a KimiServeError for whatever can be known before work begins."""
    if not options.source.is_dir():
        raise QuantizeError(f"SRC: {options.source} is not a directory")
    output.check_places(options.source, options.target)
    checkpoint = load_checkpoint(options.source)
    if checkpoint.model.quantization is not None:
        method = checkpoint.model.quantization.get("quant_method")
        raise QuantizeError(f"SRC: {options.source} is already quantized (quant_method {method!r})")
    chosen = scheme.choose(
        checkpoint.model, options.scheme, options.group_size, lm_head=options.lm_head, tower=options.tower
    )
    weights = Weights(options.source)
    shards = layout.plan(weights.tensors, expected_tensors(checkpoint.model), chosen, options.shard_bytes)
    return Plan(options, checkpoint, weights, chosen, shards, output.files_to_copy(options.source))


def make(plan: Plan, importance: Mapping[str, Tensor], done: Manifest) -> None:
    """Write what is missing in the plan's folder."""
    bar = output.progress(plan.shards, done, "quantizing")
    with bar, plan.weights, Quantizer(plan.weights, importance, bar.update) as quantizer:
        for shard in output.due(plan.shards, done):
            done.add(shard.file, quantizer.write(plan.folder, shard))


def finish(plan: Plan, done: Manifest) -> None:
    """Add the other files, and let the output appear under its name."""
    source = plan.options.source
    if output.source_state(source) != done.made_from["source"]:
        raise QuantizeError(f"SRC: {source} changed while it was read; delete {plan.folder} and begin again")
    config = output.load_config(source) | {"quantization_config": scheme.config_section(plan.scheme)}
    output.complete(plan.options.target, plan.shards, config, plan.copies, done)


def made_from(plan: Plan, calibration: str | None) -> dict[str, object]:
    """Everything that the output's bytes depend on."""
    options = plan.options
    return {
        "revision": manifest.REVISION,
        "scheme": options.scheme,
        "group_size": plan.scheme.decoder.group_size,
        "lm_head": options.lm_head,
        "tower": options.tower,
        "calibration": calibration,
        "shard_bytes": options.shard_bytes,
        "source": output.source_state(options.source),
    }
