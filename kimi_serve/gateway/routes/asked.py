"""What the routes of files and batches read from a request beside its body. Knows parameters and who asks."""

from __future__ import annotations

from starlette.requests import Request

from kimi_serve.gateway.archive import Archive
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.protocol.errors import ApiError, short


def archive_of(request: Request) -> Archive:
    gateway: Gateway = request.state.gateway
    if gateway.archive is None:
        message = "this server keeps no files and runs no batches; its operator can set files.folder"
        raise ApiError("files_disabled", message)
    return gateway.archive


def limit_of(request: Request, default: int, most: int) -> int:
    value = request.query_params.get("limit")
    if value is None:
        return default
    if not (value.isascii() and value.isdecimal() and len(value) < 9 and 1 <= int(value) <= most):
        what = f"limit: {short(value)} is not supported; expected a whole number from 1 to {most}"
        raise ApiError("invalid_value", what, param="limit")
    return int(value)


def choice_of(request: Request, name: str, choices: tuple[str, ...]) -> str | None:
    value = request.query_params.get(name)
    if value is not None and value not in choices:
        what = f"{name}: {short(value)} is not supported; expected one of {', '.join(choices)}"
        raise ApiError("invalid_value", what, param=name)
    return value
