"""`kimi-serve quantize`: make, then check. Knows the order and what is said of it; the work is done beside it."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from torch import Tensor
from tqdm import tqdm

from kimi_serve.errors import QuantizeError
from kimi_serve.quantize import calibrate, check, job, manifest, output, prompts, scheme
from kimi_serve.quantize.job import Plan
from kimi_serve.quantize.manifest import Manifest
from kimi_serve.quantize.options import Options
from kimi_serve.quantize.prompts import Prompts
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.source import Weights
from kimi_serve.quantize.writer import write_tensors

IMPORTANCE = "importance.safetensors"


def run(options: Options) -> str:
    """Do it; the report, one line of JSON."""
    with output.resumable():
        return _run(options)


def _run(options: Options) -> str:
    if options.prompts is not None and not options.check:
        raise QuantizeError("--prompts: needs --check")
    plan = job.prepare(options)
    calibration = _read(options.calibrate, "--calibrate", plan)
    asked = _read(options.prompts, "--prompts", plan)
    if options.target.exists():
        refuse_other(plan)
    else:
        _make(plan, calibration)
    report = summary(plan)
    if options.check:
        report |= _check(plan, asked)
    return json.dumps(report)


def _read(path: Path | None, option: str, plan: Plan) -> Prompts | None:
    return None if path is None else prompts.read(path, option, plan.options.source, plan.checkpoint)


def refuse_other(plan: Plan) -> None:
    """Raise QuantizeError unless the existing DST may be checked as what these options make."""
    target = plan.options.target
    if not plan.options.check:
        raise QuantizeError(f"DST: {target} exists; choose another, or add --check to compare it with SRC")
    if not (target / output.CONFIG).is_file():
        raise QuantizeError(f"DST: {target} holds no {output.CONFIG}; only a complete output can be compared")
    made = output.load_config(target).get("quantization_config")
    if made != json.loads(json.dumps(scheme.config_section(plan.scheme))):
        raise QuantizeError(f"DST: {target} was made with other options; its config.json says how")


def _make(plan: Plan, calibration: Prompts | None) -> None:
    with output.alone(plan.folder):
        done = manifest.resume(plan.folder, job.made_from(plan, calibration.sha256 if calibration else None))
        output.check_room(plan.folder, plan.shards, plan.copies, done)
        job.make(plan, _importance(plan, calibration, done) if calibration else {}, done)
        job.finish(plan, done)


def _importance(plan: Plan, calibration: Prompts, done: Manifest) -> Mapping[str, Tensor]:
    """Observe once; a run that goes on reads what the first one saw."""
    if IMPORTANCE not in done.finished:
        print(f"calibrating on {calibration.tokens} tokens", file=sys.stderr)
        with plan.weights:
            found = calibrate.importance(plan.weights, plan.scheme, plan.checkpoint, calibration.prompts)
        done.add(IMPORTANCE, write_tensors(plan.folder / IMPORTANCE, found))
    with Weights(plan.folder, [IMPORTANCE]) as stored:
        return {name: stored.rows(name) for name in stored.tensors}


def summary(plan: Plan) -> dict[str, object]:
    options, decoder = plan.options, plan.scheme.decoder
    outputs = sum(shard.nbytes for shard in plan.shards)
    return {
        "target": str(options.target),
        "scheme": options.scheme,
        "group_size": decoder.group_size,
        "quantized": sum(task.format is not None for shard in plan.shards for task in shard.tasks),
        "copied": sum(task.format is None for shard in plan.shards for task in shard.tasks),
        "source_bytes": sum(tensor.nbytes for tensor in plan.weights.tensors.values()),
        "bytes": outputs,
    }


def _check(plan: Plan, asked: Prompts | None) -> dict[str, object]:
    with plan.weights, Weights(plan.options.target) as target:
        source, made = Model(plan.weights), Model(target)
        total = sum(task.format is not None for shard in plan.shards for task in shard.tasks)
        errors = list(tqdm(check.tensor_errors(plan.shards, source, made), total=total, desc="comparing", disable=None))
        for error in errors:
            print(f"{error.relative:.5f} {error.largest:.3e} {error.name}")
        worst = max(errors, key=lambda error: error.relative)
        report: dict[str, object] = {
            "relative_error_mean": fmean(error.relative for error in errors),
            "relative_error_worst": worst.relative,
            "worst_tensor": worst.name,
            "largest_error": max(error.largest for error in errors),
        }
        if asked is not None:
            report |= {"agreement": asdict(check.agreement(source, made, plan.checkpoint, asked.prompts))}
    return report
