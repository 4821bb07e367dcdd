"""Builds the full-size model without memory and prints its parameter count. A process of its own: vLLM keeps state.

python -m tests.model.build_full_size CHECKPOINT   (a folder of configuration and tokenizer files; no weights)
"""

import json
import sys

import torch
from vllm.config import set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.network_utils import get_distributed_init_method, get_open_port


def main(checkpoint: str) -> None:
    config = EngineArgs(checkpoint, dtype="bfloat16", max_model_len=4096, enforce_eager=True).create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, get_distributed_init_method("127.0.0.1", get_open_port()), 0, "gloo")
        initialize_model_parallel(1)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            model = initialize_model(config)
    parameters = dict(model.named_parameters())
    print(
        json.dumps(
            {
                "class": f"{type(model).__module__}.{type(model).__name__}",
                "parameters": sum(parameter.numel() for parameter in parameters.values()),
                "devices": sorted({str(parameter.device) for parameter in parameters.values()}),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
