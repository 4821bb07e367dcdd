"""An encoder and a decoder in processes of their own, with one folder between them. Knows vLLM; judges nothing.

`python -m tests.engine.apart encoder|decoder CHECKPOINT FOLDER TARGET`: runs all cases with images. The encoder leaves
each picture's rows in FOLDER; TARGET holds the continuations, and how often the tower ran.
"""

import sys

import numpy as np
import torch
from vllm import LLM
from vllm.config import ECTransferConfig

from tests.engine.driver import generate, prompt, sampling
from tests.engine.golden import STEPS, cases


def main(role: str, checkpoint: str, folder: str, target: str) -> None:
    llm = LLM(
        checkpoint,
        dtype="float32",
        max_model_len=6144,
        max_num_seqs=4,
        max_num_batched_tokens=8192,
        enforce_eager=True,
        generation_config="vllm",
        attention_backend="CPU_MLA",
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        ec_transfer_config=ECTransferConfig(
            ec_connector="ECExampleConnector",
            ec_role="ec_producer" if role == "encoder" else "ec_consumer",
            ec_connector_extra_config={"shared_storage_path": folder},
        ),
    )
    llm.apply_model(watch)
    with_images = [case for case in cases().values() if case.image_paths]
    outputs = generate(llm, [prompt(case) for case in with_images], sampling(max_tokens=STEPS))
    arrays = {
        case.name: np.array(output.outputs[0].token_ids) for case, output in zip(with_images, outputs, strict=True)
    }
    [(calls, parameters)] = llm.apply_model(seen)
    np.savez(target, tower_calls=calls, decoder_parameters=parameters, **arrays)


def watch(model: torch.nn.Module) -> None:
    model.tower_calls = 0

    def count(*_: object) -> None:
        model.tower_calls += 1

    model.vision_tower.register_forward_hook(count)


def seen(model: torch.nn.Module) -> tuple[int, int]:
    """How often the tower ran, and how many parameters the decoder has."""
    return model.tower_calls, sum(name.startswith("language_model.") for name, _ in model.named_parameters())


if __name__ == "__main__":
    main(*sys.argv[1:])
