"""How the gateway is started beside an engine: its command line and environment. It is another process."""

import importlib.util
import sys
from pathlib import Path

from kimi_serve.errors import LaunchError

NEEDED = ("aiohttp", "argon2", "fastapi", "pydantic_settings", "uvicorn")
FILES = ("tiktoken.model", "tokenizer_config.json", "preprocessor_config.json")
DEFAULTS = {
    "KIMI_SERVE_LISTEN__SETTLE_S": "0",  # no load balancer spreads requests over the gateways of one engine
    "KIMI_SERVE_PLAYGROUND__ENABLED": "true",  # whoever types `up` wants to try it
}


def require_installed() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LaunchError(
            f"the gateway needs {', '.join(missing)}: pip install 'kimi_serve[gateway]', or start with --engine-only"
        )


def command(host: str, port: int, engine: str, checkpoint: Path) -> list[str]:
    listen = ["--host", host, "--port", str(port)]
    return [
        sys.executable,
        "-m",
        "kimi_serve.cli",
        "gateway",
        *listen,
        "--engine",
        engine,
        "--checkpoint",
        str(checkpoint),
    ]


def environment(api_key: str | None) -> dict[str, str]:
    """The engine's key guards the gateway too. Not on the command line: every user of the machine could read it."""
    if api_key is None:
        return {}
    return {"KIMI_SERVE_KEYS__SINGLE": api_key, "KIMI_SERVE_UPSTREAM__API_KEY": api_key}


def checkpoint(model: str) -> Path:
    """The model's folder; for a hub id, the one that the engine has just downloaded into."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True, allow_patterns=list(FILES)))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise LaunchError(f"{model}: its tokenizer is not in the local cache, where the gateway needs it") from error
