"""A plan as a person reads it. Knows columns; computes nothing but differences."""

from collections.abc import Iterator, Sequence

from kimi_serve.launch.sizes import GIB
from kimi_serve.plan import memory
from kimi_serve.plan.cpu import NoPlan
from kimi_serve.plan.plan import Plan, SchemePlan
from kimi_serve.plan.request import Request
from kimi_serve.plan.weights import Impossible


def report(plan: Plan) -> str:
    parts = [_model(plan), _request(plan.request), _cache(plan), _weights(plan)]
    parts += [_memory(plan), _gpus(plan), _cpu(plan)]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _model(plan: Plan) -> list[str]:
    return [f"{plan.name}: {plan.parameters:,} parameters, {plan.footprint.max_positions:,} positions"]


def _request(request: Request) -> list[str]:
    lines = ["Request, in tokens"]
    rows = [("the template's turns", request.template), ("text", request.text)]
    for cost in request.pictures:
        asked = cost.pictures
        seen = "" if cost.seen == (asked.width, asked.height) else f", seen at {cost.seen[0]}x{cost.seen[1]}"
        what = f"{asked.count} {asked.kind}{'s' if asked.count > 1 else ''} of {asked.width}x{asked.height}"
        rows.append((f"{what}, {cost.each:,} each{seen}", cost.tokens))
    rows.append(("prompt", request.prompt))
    most = "what is left" if request.max_tokens is None else "max_tokens"
    rows.append((f"answer ({most})", max(0, request.answer)))
    lines += [f"  {name:<58} {tokens:>9,}" for name, tokens in rows]
    verdict = "does not fit: " + "; ".join(request.problems) if request.problems else "fits"
    return [*lines, f"  context {request.context:,}: {verdict}"]


def _cache(plan: Plan) -> list[str]:
    needs, context, at_once = plan.footprint, plan.request.context, plan.options.concurrency
    lines = [f"Cache, in bfloat16, of {at_once} x {context:,} tokens"]
    for name, per_token in (
        ("latent: on GPUs and AMX", needs.latent_per_token),
        ("expanded: on other CPUs", needs.expanded_per_token),
    ):
        total = _gib(memory.cache(per_token, context, at_once))
        lines.append(f"  {name:<32} {per_token:>9,} bytes a token {total:>10} GiB")
    return lines


def _weights(plan: Plan) -> list[str]:
    lines = [f"{'Weights':<16} {'files, bytes':>16} {'GB':>7} {'a GPU, GiB':>11}"]
    for each in plan.schemes:
        if isinstance(each, Impossible):
            lines.append(f"  {each.scheme:<14} {each.why}")
            continue
        weights = each.weights
        loaded = _gib(each.fixed[0].nbytes)
        lines.append(f"  {_title(each):<14} {weights.files:>16,} {weights.files / 1e9:>7.2f} {loaded:>11}")
    return lines


def _memory(plan: Plan) -> list[str]:
    """Each part's size may differ between schemes only for the weights: one row a part, one column a scheme."""
    schemes, ranks = plan.possible, plan.options.tensor_parallel
    lines = [_row(f"A GPU of {ranks}, GiB" if ranks > 1 else "One GPU, GiB", [_title(each) for each in schemes])]
    for rows in zip(*(each.fixed for each in schemes), strict=True):
        first = rows[0]
        mark = "" if first.kind == "derived" else "  (allowance, not derived)"
        why = "" if first.name in ("weights", "allowance") else f"  {first.why}"
        lines.append(_row(f"  {first.name}", [_gib(part.nbytes) for part in rows]) + why + mark)
    at_once = f"  {plan.options.concurrency} x {plan.request.context:,} tokens of latents"
    lines.append(_row("  cache", [_gib(each.cache) for each in schemes]) + at_once)
    return [*lines, _row("  total", [_gib(each.total) for each in schemes])]


def _gpus(plan: Plan) -> list[str]:
    schemes, options = plan.possible, plan.options
    share = f"{options.utilization:g} of the memory" + (
        f", {options.tensor_parallel} GPUs" if options.tensor_parallel > 1 else ""
    )
    lines = [f"Requests of {plan.request.context:,} tokens at once, in {share}"]
    lines.append(_row("  GPU", [_title(each) for each in schemes], 34))
    for fits in zip(*(each.fits for each in schemes), strict=True):
        gpu = fits[0].gpu
        name = f"  {gpu.name:<24} {gpu.memory / GIB:>5.1f} GiB"
        lines.append(_row(name, [f"{fit.requests:,}" if fit.requests else "-" for fit in fits], 34))
    return lines


def _cpu(plan: Plan) -> list[str]:
    lines = ["This machine's CPU, as `kimi-serve engine` would start there"]
    for each in plan.possible:
        said = list(_cpu_lines(each, plan.request))
        lines += [f"  {title:<14} {line}" for title, line in zip([_title(each), ""], said, strict=False)]
    return lines


def _cpu_lines(planned: SchemePlan, request: Request) -> Iterator[str]:
    cpu = planned.cpu
    if isinstance(cpu, NoPlan):
        yield cpu.why
        return
    numbers = "float32" if cpu.value_bytes == 4 else "bfloat16"
    yield f"context {cpu.context:,}, steps of {cpu.step_tokens:,}, {cpu.attention} attention in {numbers}"
    verdict = f"{cpu.requests} of that context at once" if cpu.fits else "does not fit"
    over = f"; this request's {request.total:,} tokens do not fit" if request.total > cpu.context else ""
    yield f"{_gib(cpu.other)} + cache {_gib(cpu.cache)} of {_gib(cpu.available)} GiB free: {verdict}{over}"


def _row(name: str, cells: Sequence[str], width: int = 22) -> str:
    return f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells)


def _title(planned: SchemePlan) -> str:
    group = planned.weights.group_size
    return planned.weights.scheme if group is None else f"{planned.weights.scheme} ({group})"


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f}"
