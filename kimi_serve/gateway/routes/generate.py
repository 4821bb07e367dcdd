"""Routes that an engine answers. Knows paths and their documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from kimi_serve.gateway.answer import answer
from kimi_serve.gateway.prepare import chat_work, completion_work, messages_work, responses_work
from kimi_serve.gateway.routes import schemas
from kimi_serve.gateway.routes.documented import generates, takes


class _Bare(APIRoute):
    """Gives the function the request and sends what it returns: there is nothing for FastAPI to validate or convert."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        return self.endpoint


router = APIRouter(route_class=_Bare)


@router.post(
    "/v1/chat/completions",
    responses=generates(schemas.CHAT_ANSWER, "chat"),
    openapi_extra=takes(schemas.CHAT),
    response_class=Response,
)
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions, with pictures. Fields that the gateway does not know go on to the engine."""
    return await answer(request, "chat", chat_work)


@router.post(
    "/v1/completions",
    responses=generates(schemas.COMPLETION_ANSWER, "completion"),
    openapi_extra=takes(schemas.COMPLETION),
    response_class=Response,
)
async def completions(request: Request) -> Response:
    """OpenAI's text completions."""
    return await answer(request, "chat", completion_work)


@router.post(
    "/v1/messages",
    responses=generates(schemas.MESSAGES_ANSWER, "messages", schemas.ANTHROPIC_ERROR),
    openapi_extra=takes(schemas.MESSAGES),
    response_class=Response,
)
async def messages(request: Request) -> Response:
    """Anthropic's Messages, with pictures and tools. Errors have Anthropic's form."""
    return await answer(request, "chat", messages_work)


@router.post(
    "/v1/responses",
    responses=generates(schemas.RESPONSES_ANSWER, "responses"),
    openapi_extra=takes(schemas.RESPONSES),
    response_class=Response,
)
async def create_response(request: Request) -> Response:
    """OpenAI's Responses, with pictures and tools. The server keeps no state: the input is the whole conversation."""
    return await answer(request, "chat", responses_work)


def bare_routes() -> list[APIRoute]:
    """They can be called without what FastAPI does around a function."""
    return [route for route in router.routes if isinstance(route, _Bare)]
