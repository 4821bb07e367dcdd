"""The gateway's process: listens, and leaves in order. Knows uvicorn and signals; no route."""

from __future__ import annotations

from types import FrameType

import uvicorn

from kimi_serve.errors import ConfigError
from kimi_serve.gateway import logs
from kimi_serve.gateway.app import create_app
from kimi_serve.gateway.gateway import Gateway, discovery
from kimi_serve.gateway.settings import Settings


class Server(uvicorn.Server):
    """Refuses new requests from the first signal on, while those under way have the grace time to end."""

    gateway: Gateway | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.gateway is not None:
            self.gateway.admission.drain(refuse_waiting=True)
        super().handle_exit(sig, frame)


def run(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT. Raises ConfigError before it listens."""
    if settings.checkpoint is None or not (settings.checkpoint / "tiktoken.model").is_file():
        raise ConfigError(f"checkpoint: {settings.checkpoint} holds no tiktoken.model; expected a Kimi-VL folder")
    discovery(settings)
    logs.to_stderr()

    def opened(gateway: Gateway) -> None:
        server.gateway = gateway

    server = Server(
        uvicorn.Config(
            create_app(settings, opened),
            host=settings.listen.host,
            port=settings.listen.port,
            log_config=None,
            access_log=False,
            http="httptools",
            loop="uvloop",
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.listen.grace_s)),
        )
    )
    server.run()
    return 0 if server.started else 1
