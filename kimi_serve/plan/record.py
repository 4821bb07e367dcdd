"""A plan as one JSON object. Knows field names; computes nothing."""

from dataclasses import asdict

from kimi_serve.plan import memory
from kimi_serve.plan.cpu import CpuPlan, NoPlan
from kimi_serve.plan.gpus import Fit
from kimi_serve.plan.plan import Plan, SchemePlan
from kimi_serve.plan.request import Request
from kimi_serve.plan.weights import Impossible

Record = dict[str, object]


def record(plan: Plan) -> Record:
    options, needs, context = plan.options, plan.footprint, plan.request.context
    return {
        "model": {"name": plan.name, "parameters": plan.parameters, "positions": needs.max_positions},
        "request": _request(plan.request),
        "kv": {
            "latent_per_token": needs.latent_per_token,
            "expanded_per_token": needs.expanded_per_token,
            "context": context,
            "concurrency": options.concurrency,
            "latent": memory.cache(needs.latent_per_token, context, options.concurrency),
            "expanded": memory.cache(needs.expanded_per_token, context, options.concurrency),
        },
        "tensor_parallel": options.tensor_parallel,
        "gpu_memory_utilization": options.utilization,
        "schemes": [
            {"scheme": each.scheme, "impossible": each.why} if isinstance(each, Impossible) else _scheme(each, plan)
            for each in plan.schemes
        ],
    }


def _request(request: Request) -> Record:
    return {
        "template_tokens": request.template,
        "text_tokens": request.text,
        "pictures": [
            {
                **asdict(cost.pictures),
                "seen_width": cost.seen[0],
                "seen_height": cost.seen[1],
                "tokens_each": cost.each,
                "tokens": cost.tokens,
            }
            for cost in request.pictures
        ],
        "prompt_tokens": request.prompt,
        "max_tokens": request.max_tokens,
        "answer_tokens": max(0, request.answer),
        "context": request.context,
        "fits": not request.problems,
        "problems": list(request.problems),
    }


def _scheme(planned: SchemePlan, plan: Plan) -> Record:
    weights = planned.weights
    return {
        "scheme": weights.scheme,
        "group_size": weights.group_size,
        "tensor_bytes": weights.nbytes,
        "file_bytes": weights.files,
        "per_gpu": {
            "parts": [asdict(part) for part in planned.fixed],
            "cache": planned.cache,
            "total": planned.total,
        },
        "gpus": [_gpu(fit, plan.options.concurrency) for fit in planned.fits],
        "cpu": _cpu(planned.cpu, plan.request),
    }


def _gpu(fit: Fit, concurrency: int) -> Record:
    return {
        "name": fit.gpu.name,
        "memory": fit.gpu.memory,
        "usable": fit.usable,
        "left_for_cache": fit.left,
        "max_num_seqs": fit.service.sequences,
        "requests": fit.requests,
        "fits": fit.requests >= concurrency,
    }


def _cpu(cpu: CpuPlan | NoPlan, request: Request) -> Record:
    if isinstance(cpu, NoPlan):
        return {"fits": False, "why": cpu.why}
    holds = cpu.fits and request.total <= cpu.context
    return asdict(cpu) | {"needed": cpu.needed, "requests": cpu.requests, "fits": holds}
