"""vLLM's own Kimi-VL class, given quantized checkpoints by its own loader. A process of its own: vLLM keeps state.

python -m tests.quantize.in_tree TARGET CHECKPOINT...   (with a VLLM_PLUGINS that does not name ours)

The model is the first checkpoint's. TARGET gets its parameters, as loaded, by vLLM's names. Each checkpoint gets a
JSON line: `unfilled`, the parameters of which some value came from no tensor, or `refused`, the error that ended it.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.fused_moe.oracle.int8 import Int8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
from vllm.model_executor.layers.quantization.compressed_tensors import compressed_tensors_moe
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.model_executor.models.kimi_vl import KimiVLForConditionalGeneration

METHODS = f"{compressed_tensors_moe.__name__}.compressed_tensors_moe_"
FILLINGS = (0, 1)  # before two loads: what differs after them was not loaded


def main(target: str, *checkpoints: str) -> None:
    model = build(
        EngineArgs(
            checkpoints[0], skip_tokenizer_init=True, dtype="bfloat16", max_model_len=512, enforce_eager=True
        ).create_engine_config()
    )
    assert type(model) is KimiVLForConditionalGeneration
    for checkpoint in checkpoints:
        try:
            first, second = (load(model, Path(checkpoint), filling) for filling in FILLINGS)
        except Exception as error:  # whatever vLLM's loaders raise
            print(json.dumps({"refused": f"{type(error).__name__}: {error}"}))
            continue
        if checkpoint == checkpoints[0]:
            save_file(first, target)
        print(json.dumps({"unfilled": [name for name in first if not torch.equal(first[name], second[name])]}))


def build(config: VllmConfig) -> KimiVLForConditionalGeneration:
    """The model, its weights not yet loaded. A CPU has no backend for its experts, so a GPU's is named: it chooses the
    kernel, and what is stored for it is the same.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        set_current_vllm_config(config),
        mock.patch(f"{METHODS}wna16.select_wna16_moe_backend", return_value=(WNA16MoEBackend.TRITON, object)),
        mock.patch(f"{METHODS}w8a8_int8.select_int8_moe_backend", return_value=(Int8MoeBackend.TRITON, object)),
    ):
        init_distributed_environment(1, 0, f"file://{folder}/meeting", 0, "gloo")
        initialize_model_parallel(1)
        torch.set_default_dtype(torch.bfloat16)
        return initialize_model(config)


def load(model: KimiVLForConditionalGeneration, checkpoint: Path, filling: int) -> dict[str, torch.Tensor]:
    for parameter in model.parameters():
        parameter.data.fill_(filling)
    model.load_weights(stored(checkpoint))
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def stored(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(checkpoint.glob("*.safetensors")):
        yield from load_file(file).items()


if __name__ == "__main__":
    main(*sys.argv[1:])
