"""One engine, one process: runs a configuration's passes and writes what came out. Knows vLLM; judges nothing.

Arrays are named pass/case/what. vLLM leaves state in its process (distributed groups, registries, thread binding), so
every configuration gets its own.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from vllm import LLM, RequestOutput, SamplingParams
from vllm.config import VllmConfig
from vllm.platforms.cpu import CpuPlatform

from tests.engine import adapted, long_prompt, placed, rows
from tests.engine.configurations import CONFIGURATIONS, Configuration
from tests.engine.golden import STEPS, VOCAB, Case, cases, shorter

Arrays = dict[str, np.ndarray]


def main(name: str, checkpoint: str, adapters: str, target: str) -> None:
    configuration = CONFIGURATIONS[name]
    if not configuration.in_process:
        fork_workers()
    if configuration.in_tree:
        from tests.engine.in_tree import use_in_tree_class

        use_in_tree_class()
    llm = LLM(
        checkpoint,
        dtype=configuration.dtype,
        max_model_len=long_prompt.LENGTH + 64 if "long" in configuration.passes else 6144,
        max_num_seqs=16,
        generation_config="vllm",
        max_logprobs=VOCAB,
        logprobs_mode="raw_logits",
        mm_processor_cache_gb=0,  # every pass computes its own
        **{"enforce_eager": True, "limit_mm_per_prompt": {"image": 24}, **configuration.options},
    )
    results = {
        key: value for one in configuration.passes for key, value in run(one, llm, configuration, Path(adapters))
    }
    if configuration.in_process:
        results["model_class"] = np.array(llm.apply_model(lambda model: type(model).__module__))
    np.savez(target, **results)


def fork_workers() -> None:
    """Workers with the vLLM that is here, in place of new interpreters that import it: twice fifteen seconds."""
    settle = CpuPlatform.check_and_update_config

    def settled(config: VllmConfig) -> None:
        settle(config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = staticmethod(settled)


def run(name: str, llm: LLM, configuration: Configuration, adapters: Path) -> Iterator[tuple[str, np.ndarray]]:
    begun = time.monotonic()
    if name in ("batch", "again"):
        results = batch(llm, list(cases().values()))
    elif name == "mixed":
        results = batch(llm, shorter())
    elif name == "vision":
        results = {case.name: vision(llm, case) for case in cases().values() if case.image_paths}
    elif name == "long":
        results = {"long": long(llm, long_prompt.LENGTH)}
    elif name == "rows":
        results = rows.run(llm)
    elif name == "images":
        results = placed.run(llm)
    elif name == "adapters":
        results = adapted.run(llm, adapters, prompt, sampling(max_tokens=adapted.STEPS, logprobs=VOCAB))
    else:
        assert name == "forced"
        assert configuration.in_process
        results = {case.name: watched(llm, case) for case in cases().values()}
    print(f"pass {name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
    for case_name, arrays in results.items():
        for what, array in arrays.items():
            yield f"{name}/{case_name}/{what}", array


def forced(llm: LLM, case: Case, watch: "Watch") -> Arrays:
    """Logits at the pack's positions, and the choice at each step of its continuation given the steps before."""
    npz = case.arrays()
    request = prompt(case, npz["greedy_ids"].tolist()[:-1])
    last = len(case.prompt) - 1
    logits = watched_logits(llm, request, watch, [*npz["logit_positions"], *range(last, last + STEPS)])
    return {"logits": logits[:-STEPS], "choices": logits[-STEPS:].argmax(-1)}


def long(llm: LLM, length: int) -> Arrays:
    watch = Watch()
    llm.apply_model(watch.begin)
    request: dict[str, object] = {"prompt_token_ids": long_prompt.prompt(length)}
    logits = watched_logits(llm, request, watch, long_prompt.positions(length))
    llm.apply_model(watch.end)
    return {"logits": logits, "step_starts": np.array(watch.step_starts)}


def watched_logits(llm: LLM, request: dict[str, object], watch: "Watch", positions: Sequence[int]) -> np.ndarray:
    """At positions of a prompt, of which the last is the prompt's.

    Of the model's own rows: as prompt logprobs of the API they would be every position's whole vocabulary, in lists.
    """
    [output] = generate(llm, [request], sampling(max_tokens=1, skip_reading_prefix_cache=True))
    hidden = torch.cat(watch.hidden)
    assert len(hidden) == len(output.prompt_token_ids)
    [logits] = llm.apply_model(lambda model: as_numpy(model.compute_logits(hidden[list(positions)])))
    assert logits[-1].argmax() == output.outputs[0].token_ids[0]
    return logits


def batch(llm: LLM, given: list[Case]) -> dict[str, Arrays]:
    """Cases at once: prefills of some meet decodes of others."""
    outputs = generate(llm, [prompt(case) for case in given], sampling(max_tokens=STEPS, logprobs=VOCAB))
    return dict(zip((case.name for case in given), map(continuation, outputs), strict=True))


def vision(llm: LLM, case: Case) -> Arrays:
    """Rows of the tower and of the projector, in the real model object."""
    npz = case.arrays()

    @torch.inference_mode()
    def look(model: torch.nn.Module) -> Arrays:
        tower = model.vision_tower(torch.from_numpy(npz["pixel_values_u8"]), torch.from_numpy(npz["image_grid_hws"]))
        rows = model.multi_modal_projector(tower)
        return {"tower_rows": as_numpy(tower.flatten(0, 1)), "proj_rows": as_numpy(rows)}

    return llm.apply_model(look)[0]


def watched(llm: LLM, case: Case) -> Arrays:
    """`forced`, with the first position of every step, and the experts chosen for the first step's first tokens."""
    watch = Watch()
    llm.apply_model(watch.begin)
    arrays = forced(llm, case, watch)
    llm.apply_model(watch.end)
    return {**arrays, **watch.chosen, "step_starts": np.array(watch.step_starts)}


class Watch:
    """Listens at the layers of a model in this process."""

    def __init__(self) -> None:
        self.step_starts: list[int] = []
        self.hidden: list[torch.Tensor] = []
        self.chosen: Arrays = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._routers: list[object] = []

    def begin(self, model: torch.nn.Module) -> None:
        layers = model.language_model.model.layers
        self._handles.append(layers[0].register_forward_pre_hook(self._record_start))
        self._handles.append(model.register_forward_hook(lambda _, given, rows: self.hidden.append(rows.clone())))
        for index, layer in enumerate(layers):
            if hasattr(layer.mlp, "experts"):
                router = layer.mlp.experts.router
                router.select_experts = self._recording(router.select_experts, index)
                self._routers.append(router)

    def end(self, model: torch.nn.Module) -> None:
        for handle in self._handles:
            handle.remove()
        for router in self._routers:
            del router.select_experts  # the class's own again

    def _record_start(self, layer: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.step_starts.append(int(args[0][0]))

    def _recording(self, select: Callable[..., tuple[torch.Tensor, torch.Tensor]], index: int) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> tuple[torch.Tensor, ...]:
            weights, ids, *more = select(*args, **kwargs)
            if f"router_ids_layer{index}" not in self.chosen:
                self.chosen[f"router_weights_layer{index}"] = as_numpy(weights[:16])
                self.chosen[f"router_ids_layer{index}"] = ids[:16].numpy().copy()
            return weights, ids, *more

        return wrapped


def prompt(case: Case, more: Sequence[int] = ()) -> dict[str, object]:
    request: dict[str, object] = {"prompt_token_ids": [*case.short_prompt, *more]}
    if case.image_paths:
        request["multi_modal_data"] = {"image": case.images()}
    return request


def sampling(**options: object) -> SamplingParams:
    return SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **options)


def generate(llm: LLM, requests: list[dict[str, object]], options: SamplingParams) -> list[RequestOutput]:
    return llm.generate(requests, options, use_tqdm=False)


def continuation(output: RequestOutput) -> Arrays:
    logprobs = output.outputs[0].logprobs
    last = np.empty(VOCAB, np.float32)
    for token_id, entry in logprobs[0].items():
        last[token_id] = entry.logprob
    return {
        "prompt": np.array(output.prompt_token_ids),
        "ids": np.array(output.outputs[0].token_ids),
        "last": last,
        "cached": np.array(output.num_cached_tokens or 0),
    }


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().copy()


if __name__ == "__main__":
    main(*sys.argv[1:])
