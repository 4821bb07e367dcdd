"""The pass that gives an engine the reference's own rows in place of pictures. Knows vLLM; judges nothing."""

import numpy as np
import torch
from vllm import LLM, RequestOutput, SamplingParams

from tests.engine import driver
from tests.engine.golden import STEPS, VOCAB, Case, cases

Arrays = dict[str, np.ndarray]


def run(llm: LLM) -> dict[str, Arrays]:
    """All cases with images at once; then what is refused."""
    with_images = [case for case in cases().values() if case.image_paths]
    options = driver.sampling(max_tokens=STEPS, logprobs=VOCAB)
    outputs: list[RequestOutput] = driver.generate(llm, [request(case) for case in with_images], options)
    results = {case.name: driver.continuation(output) for case, output in zip(with_images, outputs, strict=True)}
    three = cases()["c5_three_images"]
    good = [torch.zeros(tokens, 256) for tokens in three.image_tokens]
    broken = good[0].clone()
    broken[2, 5] = float("nan")
    wrong: dict[str, object] = {
        "narrow": [good[0], good[1][:, :255], good[2]],
        "broken": [broken, *good[1:]],
        "missing": {"image_grid_hws": torch.from_numpy(three.arrays()["image_grid_hws"])},
    }
    return results | {name: {"said": np.array(refusal(llm, three, given, options))} for name, given in wrong.items()}


def request(case: Case) -> dict[str, object]:
    npz = case.arrays()
    given = {
        "image_embeds": torch.from_numpy(npz["proj_rows"]),
        "image_grid_hws": torch.from_numpy(npz["image_grid_hws"]),
    }
    return {"prompt_token_ids": case.short_prompt, "multi_modal_data": {"image": given}}


def refusal(llm: LLM, case: Case, given: object, options: SamplingParams) -> str:
    asked = {"prompt_token_ids": case.short_prompt, "multi_modal_data": {"image": given}}
    try:
        driver.generate(llm, [asked], options)
    except ValueError as error:
        return str(error)
    return "nothing"
