"""The pass that watches where the rows of many pictures land. Knows vLLM; judges nothing."""

import numpy as np
import torch
from PIL import Image
from vllm import LLM

from tests.engine import driver, many_images
from tests.engine.golden import VOCAB

Arrays = dict[str, np.ndarray]


def run(llm: LLM) -> dict[str, Arrays]:
    """The prompt with its pictures in every order; only in the first are they new to the engine."""
    projected: list[torch.Tensor] = []
    given: list[torch.Tensor] = []

    def listen(model: torch.nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        layer = model.language_model.model.layers[0]
        return [
            model.multi_modal_projector.register_forward_hook(lambda _, __, rows: projected.append(rows.clone())),
            layer.register_forward_pre_hook(lambda _, args: given.append(args[1].clone())),
        ]

    [handles] = llm.apply_model(listen)
    results = {}
    for name, order in many_images.orders().items():
        projected.clear()
        given.clear()
        output = one(llm, order)
        results[name] = driver.continuation(output) | {"given": driver.as_numpy(torch.cat(given))}
        results[name]["projected"] = driver.as_numpy(torch.cat(projected)) if projected else np.empty(0)
    for handle in handles:
        handle.remove()
    return results


def one(llm: LLM, order: list[int]) -> driver.RequestOutput:
    images = [Image.fromarray(many_images.pixels()[number]) for number in order]
    request: dict[str, object] = {"prompt_token_ids": many_images.prompt(), "multi_modal_data": {"image": images}}
    [output] = driver.generate(llm, [request], driver.sampling(max_tokens=1, logprobs=VOCAB))
    return output
