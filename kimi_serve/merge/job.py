"""Merges an adapter into a checkpoint: the order of the steps. Knows files; never how values are added.

All is judged before the first weight is read; stopped at any point, the same command goes on with the first file that
is not finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kimi_serve.errors import AdapterError
from kimi_serve.inputs import adapter as adapters
from kimi_serve.inputs.adapter import Adapter, read_adapter
from kimi_serve.inputs.config import load_checkpoint
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.merge.merger import Merger
from kimi_serve.merge.options import Options
from kimi_serve.quantize import layout, manifest, output
from kimi_serve.quantize.layout import Shard
from kimi_serve.quantize.manifest import Manifest
from kimi_serve.quantize.source import Weights
from kimi_serve.quantize.writer import write_atomically

MANIFEST = "merge_manifest.json"
REVISION = 1  # raise it where the same input would no longer give the same bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, judged."""

    options: Options
    adapter: Adapter
    base: Weights
    deltas: Weights
    shards: Sequence[Shard]
    copies: Sequence[Path]

    @property
    def folder(self) -> Path:
        return output.partial(self.options.target)

    @property
    def merger(self) -> Merger:
        return Merger(self.base, self.deltas, self.adapter)


def prepare(options: Options) -> Plan:
    """Read configurations and headers. Raise a KimiServeError for whatever can be known before work begins."""
    for name, folder in (("BASE", options.base), ("ADAPTER", options.adapter)):
        if not folder.is_dir():
            raise AdapterError(f"{name}: {folder} is not a directory")
        output.check_places(folder, options.target)
    model = load_checkpoint(options.base).model
    if model.quantization is not None:
        method = model.quantization.get("quant_method")
        raise AdapterError(
            f"BASE: {options.base} is quantized (quant_method {method!r}); merge into the checkpoint that it was made "
            "from, and quantize the result"
        )
    adapter = read_adapter(options.adapter, model)
    base, expected = Weights(options.base), expected_tensors(model)
    layout.check_complete(base.tensors, expected)
    shards = layout.split([layout.task_for(base.tensors[name], None) for name in expected], options.shard_bytes)
    deltas = Weights(options.adapter, [adapters.WEIGHTS])
    return Plan(options, adapter, base, deltas, shards, output.files_to_copy(options.base))


def make(plan: Plan) -> None:
    """Write DST, or what is missing of it."""
    with output.alone(plan.folder):
        done = manifest.resume(plan.folder, made_from(plan.options), MANIFEST)
        output.check_room(plan.folder, plan.shards, plan.copies, done)
        merger, bar = plan.merger, output.progress(plan.shards, done, "merging")
        with bar, plan.base, plan.deltas:
            for shard in output.due(plan.shards, done):
                content = merger.content(shard, bar.update)
                done.add(shard.file, write_atomically(plan.folder / shard.file, content))
        finish(plan, done)


def finish(plan: Plan, done: Manifest) -> None:
    """The base's config.json stays as it is: what was trained is in the weights, and the router is the base's."""
    options = plan.options
    if made_from(options) != done.made_from:
        raise AdapterError(f"{options.base} or {options.adapter} changed while it was read; delete {plan.folder}")
    output.complete(options.target, plan.shards, output.load_config(options.base), plan.copies, done)


def made_from(options: Options) -> dict[str, object]:
    """Everything that the output's bytes depend on."""
    files = [options.adapter / name for name in (adapters.CONFIG, adapters.WEIGHTS)]
    return {
        "revision": REVISION,
        "shard_bytes": options.shard_bytes,
        "source": output.source_state(options.base),
        "adapter": output.state_of(files),
    }
