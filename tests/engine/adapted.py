"""Requests with adapters, for the driver and for the oracle. Knows names and cases; judges nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from vllm import LLM
from vllm.lora.request import LoRARequest

from tests.engine.golden import VOCAB, cases

Arrays = dict[str, np.ndarray]

CASES = ("c1_text_40", "c3_one_image_padded", "c5_three_images")
STEPS = 4
BASE = "base"


def run(llm: LLM, adapters: Path, prompt: Callable[..., dict[str, object]], options: object) -> dict[str, Arrays]:
    """Every case with each adapter and without one, all in one batch; and what is said of adapters that are refused."""
    served = [BASE, *sorted(path.name for path in (adapters / "served").iterdir())]
    asked = [(case, who) for case in CASES for who in served]
    outputs = llm.generate(
        [prompt(cases()[case]) for case, _ in asked],
        options,
        use_tqdm=False,
        lora_request=[_request(adapters / "served" / who, served.index(who)) for _, who in asked],
    )
    results = {f"{case}-{who}": _continuation(output) for (case, who), output in zip(asked, outputs, strict=True)}
    for number, path in enumerate(sorted((adapters / "refused").iterdir()), len(served)):
        results[path.name] = {"refusal": np.array(_refusal(llm, _request(path, number)))}
    return results


def _request(path: Path, number: int) -> LoRARequest | None:
    return None if number == 0 else LoRARequest(path.name, number, str(path))


def _refusal(llm: LLM, request: LoRARequest | None) -> str:
    try:
        llm.llm_engine.add_lora(request)
    except ValueError as error:
        return str(error)
    return ""


def _continuation(output: object) -> Arrays:
    completion = output.outputs[0]
    last = np.empty(VOCAB, np.float32)
    for token_id, entry in completion.logprobs[0].items():
        last[token_id] = entry.logprob
    return {"ids": np.array(completion.token_ids), "last": last}
