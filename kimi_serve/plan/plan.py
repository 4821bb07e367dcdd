"""A plan: request, weights, memory, GPUs and this CPU for one question. Knows the order; prints nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kimi_serve.inputs.tensors import num_parameters
from kimi_serve.launch import footprint as footprints
from kimi_serve.launch.footprint import Footprint
from kimi_serve.launch.machine import Machine
from kimi_serve.plan import cpu, gpus, memory, request, subject, weights
from kimi_serve.plan.cpu import CpuPlan, NoPlan
from kimi_serve.plan.gpus import Fit, Gpu
from kimi_serve.plan.memory import Part, Service
from kimi_serve.plan.options import Options
from kimi_serve.plan.request import Request
from kimi_serve.plan.weights import Impossible, Weights

SMALL_GPU_SEQUENCES = 256  # vLLM's --max-num-seqs where no one GPU was asked for


@dataclass(frozen=True, slots=True)
class SchemePlan:
    weights: Weights
    fixed: Sequence[Part]  # of a GPU, but for the cache
    cache: int  # bytes on each GPU for the requests asked about
    fits: Sequence[Fit]
    cpu: CpuPlan | NoPlan

    @property
    def total(self) -> int:
        """Bytes on each GPU."""
        return sum(part.nbytes for part in self.fixed) + self.cache


@dataclass(frozen=True, slots=True)
class Plan:
    options: Options
    name: str
    parameters: int
    footprint: Footprint  # without weights
    request: Request
    schemes: Sequence[SchemePlan | Impossible]

    @property
    def possible(self) -> list[SchemePlan]:
        return [each for each in self.schemes if isinstance(each, SchemePlan)]


def make(options: Options, machine: Machine, environ: Mapping[str, str]) -> Plan:
    """Raise a KimiServeError for what cannot be planned."""
    planned = subject.choose(options)
    model = planned.checkpoint.model
    weights.check_ranks(model, options.tensor_parallel)
    asked = request.cost(options, planned)
    found = gpus.choose(options, [Gpu(f"{gpu.name} (here)", gpu.memory) for gpu in machine.gpus])
    schemes: list[SchemePlan | Impossible] = []
    for chosen in weights.plan(options, planned):
        if isinstance(chosen, Impossible):
            schemes.append(chosen)
            continue
        needs = footprints.of(planned.checkpoint, chosen.files)
        loaded = chosen.on_gpu(options.tensor_parallel)
        fits = [gpus.fit(gpu, loaded, model, needs, options, asked.context) for gpu in found]
        service = fits[0].service if len(fits) == 1 else _service(options, asked.context)
        schemes.append(
            SchemePlan(
                weights=chosen,
                fixed=memory.fixed(loaded, model, needs, service),
                cache=memory.cache(needs.latent_per_token, asked.context, options.concurrency),
                fits=fits,
                cpu=cpu.plan(options, needs, machine, environ),
            )
        )
    return Plan(
        options, planned.name, num_parameters(model), footprints.of(planned.checkpoint, 0), asked, tuple(schemes)
    )


def _service(options: Options, context: int) -> Service:
    return Service(context, options.sequences or SMALL_GPU_SEQUENCES, options.tensor_parallel)
