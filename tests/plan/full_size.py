"""What vLLM itself says of the full-size model's memory, built without any. A process of its own: vLLM keeps state.

python -m tests.plan.full_size CHECKPOINT RANKS IMAGES...   (a folder of configuration and tokenizer files; no weights)

Prints a JSON line: bytes of parameters on one rank, bytes of cache a token, rows of context that a prefill expands, and
the most bytes that tower and projector hold for each number of pictures of 448 x 448 pixels, beside their parameters.
"""

import json
import os
import sys
import tempfile
import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention.mla_attention import MLACommonMetadataBuilder
from vllm.model_executor.model_loader.utils import initialize_model

SIDE, PATCH = 32, 14  # of one picture, in patches; of one patch, in pixels


def main(checkpoint: str, ranks: int, images: list[int]) -> None:
    config = EngineArgs(
        checkpoint, dtype="bfloat16", max_model_len=131_072, enforce_eager=True, tensor_parallel_size=ranks
    ).create_engine_config()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLLM_DIST_IDENT"] = folder.replace("/", "-")  # as vLLM's worker names its ranks' shared memory
        others = [start(config, ranks, rank, folder) for rank in range(1, ranks)]
        model = build(config, ranks, 0, folder)
        for child in others:
            os.waitpid(child, 0)
    with set_current_vllm_config(config):
        layers = config.compilation_config.static_forward_context.values()
        specs = [spec for layer in layers if (spec := cache_spec(layer, config)) is not None]
        print(
            json.dumps(
                {
                    "parameter_bytes": sum(parameter.nbytes for parameter in model.parameters()),
                    "cache_bytes_a_token": sum(spec.page_size_bytes / spec.block_size for spec in specs),
                    "context_rows": MLACommonMetadataBuilder.determine_chunked_prefill_workspace_size(config),
                    "tower_peaks": {number: tower_peak(model, number) for number in images},
                }
            )
        )


def start(config: VllmConfig, ranks: int, rank: int, folder: str) -> int:
    """Another rank, which vLLM's groups need to have met."""
    child = os.fork()
    if child == 0:
        build(config, ranks, rank, folder)
        sys.stdout.flush()
        os._exit(0)
    return child


def build(config: VllmConfig, ranks: int, rank: int, folder: str) -> Any:
    with set_current_vllm_config(config):
        init_distributed_environment(ranks, rank, f"file://{folder}/meeting", rank, "gloo")
        initialize_model_parallel(ranks)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            return initialize_model(config)


def cache_spec(layer: Any, config: VllmConfig) -> Any:
    return layer.get_kv_cache_spec(config) if hasattr(layer, "get_kv_cache_spec") else None


def tower_peak(model: Any, images: int) -> int:
    pixels = torch.empty((images * SIDE**2, 3, PATCH, PATCH), dtype=torch.uint8, device="meta")
    grids = torch.tensor([[SIDE, SIDE]] * images)
    for layer in model.modules():
        if hasattr(layer, "quant_method"):
            layer.cpu_linear = torch.nn.functional.linear  # vLLM's own choice among products comes with real weights
    model.vision_tower.patch_embed.pos_emb.forget()
    live = Live()
    with torch.no_grad(), live:
        model.embed_multimodal(pixel_values=pixels, image_grid_hws=grids)
    return live.peak + pixels.nbytes


class Live(TorchDispatchMode):
    """Counts the bytes of what operators make, from its making to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and id(leaf.untyped_storage()) not in given:
                self.add(leaf.untyped_storage())
        return made

    def add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen[storage] = True
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.drop, storage.nbytes())

    def drop(self, nbytes: int) -> None:
        self.now -= nbytes


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [int(number) for number in sys.argv[3:]])
