"""GET /plugins/kimi_serve/info: whose model class this engine runs. Knows vLLM's registry; touches no engine.

vLLM has a class of the same architecture name: a gateway uses only engines that say here that theirs is ours.
"""

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

    def attach_router(self, app: FastAPI) -> None:
        @app.get(PATH)
        async def info() -> dict[str, str | None]:
            return {"model_class": self._model_class, "version": __version__}

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Resolve the class as the engine does."""
        if engine_client is None:  # vLLM's server without an engine
            return
        from vllm.model_executor.models import ModelRegistry

        config = engine_client.model_config
        found, _ = ModelRegistry.resolve_model_cls(config.architectures, config)
        self._model_class = f"{found.__module__}.{found.__qualname__}"
