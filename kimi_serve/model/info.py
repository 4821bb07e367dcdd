"""GET /plugins/kimi_serve/info: what a gateway must know of this engine. Knows vLLM's registry; touches no engine.

* model_class: vLLM has a class of the same architecture name, and a gateway uses only engines whose class is ours.
* instance: another after every start, so that a gateway forgets what the caches held before.
* image_cache_bytes: what the cache of processed images may hold; pictures in it may be sent by their uuid alone. 0
  where no request can count on it: it is off, or every API server of several has its own.
* max_running_requests: what the scheduler computes at once; more wait in vLLM, where nobody can refuse them.
"""

import uuid
from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State

from kimi_serve import __version__

PATH = "/plugins/kimi_serve/info"


class InfoEndpoint:
    """vLLM's endpoint plugin; loaded where VLLM_PLUGINS names kimi_serve, as `kimi-serve engine` makes it."""

    name = "kimi_serve"
    required_tasks = None

    def __init__(self) -> None:
        self._model_class: str | None = None
        self._instance: str | None = None
        self._image_cache_bytes = 0
        self._max_running_requests: int | None = None

    def attach_router(self, app: FastAPI) -> None:
        @app.get(PATH)
        async def info() -> dict[str, str | int | None]:
            return {
                "model_class": self._model_class,
                "version": __version__,
                "instance": self._instance,
                "image_cache_bytes": self._image_cache_bytes,
                "max_running_requests": self._max_running_requests,
            }

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Resolve the class as the engine does."""
        if engine_client is None:  # vLLM's server without an engine
            return
        from vllm.model_executor.models import ModelRegistry

        if engine_client.vllm_config.parallel_config._api_process_count == 1:  # vLLM's own caches ask it too
            self._instance = uuid.uuid4().hex
            self._image_cache_bytes = _image_cache_bytes(engine_client.model_config.multimodal_config)
        self._max_running_requests = _max_running_requests(engine_client.vllm_config)
        config = engine_client.model_config
        found, _ = ModelRegistry.resolve_model_cls(config.architectures, config)
        self._model_class = f"{found.__module__}.{found.__qualname__}"


def _max_running_requests(config: Any) -> int:
    """Of all ranks that this server hands requests to."""
    scheduler, parallel = config.scheduler_config, config.parallel_config
    ranks = parallel.data_parallel_size_local if parallel.local_engines_only else parallel.data_parallel_size
    return int(scheduler.max_num_active_seqs or scheduler.max_num_seqs) * max(1, int(ranks))


def _image_cache_bytes(config: Any) -> int:
    return 0 if config is None else int(config.mm_processor_cache_gb * 2**30)
