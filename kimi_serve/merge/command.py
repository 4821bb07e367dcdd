"""`kimi-serve merge-lora`: make, then check. Knows the order and what is said of it; the work is done beside it."""

import json
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from kimi_serve.errors import AdapterError
from kimi_serve.merge import job
from kimi_serve.merge.job import Plan
from kimi_serve.merge.options import Options
from kimi_serve.quantize import output
from kimi_serve.quantize.source import Weights


def run(options: Options) -> str:
    """Do it; the report, one line of JSON."""
    with output.resumable():
        return _run(options)


def _run(options: Options) -> str:
    plan = job.prepare(options)
    if not options.target.exists():
        job.make(plan)
    elif not options.check:
        raise AdapterError(f"DST: {options.target} exists; choose another, or add --check to compare it")
    report = summary(plan)
    if options.check:
        report |= check(plan)
    return json.dumps(report)


def summary(plan: Plan) -> dict[str, object]:
    tensors = sum(len(shard.tasks) for shard in plan.shards)
    return {
        "target": str(plan.options.target),
        "rank": plan.adapter.rank,
        "merged": len(plan.adapter.pairs),
        "copied": tensors - len(plan.adapter.pairs),
        "bytes": sum(shard.nbytes for shard in plan.shards),
    }


def check(plan: Plan) -> dict[str, object]:
    """Compare every tensor of DST, bit by bit. Raise AdapterError for the first that is another."""
    with plan.base, plan.deltas, Weights(plan.options.target) as made:
        names = [task.source.name for shard in plan.shards for task in shard.tasks]
        if other := sorted(made.tensors.keys() ^ set(names)):
            raise AdapterError(f"DST: {plan.options.target}: tensor {other[0]!r} is in one of BASE and DST only")
        changes = {
            name: _compare(plan, made, name) for name in tqdm(names, desc="comparing", unit=" tensors", disable=None)
        }
    merged = {name: change for name, change in changes.items() if plan.merger.pair_of(name) is not None}
    most = max(merged, key=lambda name: merged[name])
    return {"change_mean": fmean(merged.values()), "change_most": merged[most], "most_changed": most}


def _compare(plan: Plan, made: Weights, name: str) -> float:
    """How far the weight went: the Frobenius norm of the difference over the base's."""
    base, start = plan.base.tensors[name], 0
    if (made.tensors[name].dtype, made.tensors[name].shape) != (base.dtype, base.shape):
        raise AdapterError(f"DST: {plan.options.target}: tensor {name!r} has another type or shape than in BASE")
    moved = norm = 0.0
    for block in plan.merger.blocks(name):
        found = made.rows(name, start, start + len(block.after))
        if not torch.equal(_bits(found), _bits(block.after)):
            raise AdapterError(
                f"DST: {plan.options.target}: tensor {name!r} is not what BASE and ADAPTER give, from row {start} on"
            )
        moved += float((block.after.double() - block.before.double()).square().sum())
        norm += float(block.before.double().square().sum())
        start += len(found)
    return (moved / norm) ** 0.5 if norm else 0.0


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)
