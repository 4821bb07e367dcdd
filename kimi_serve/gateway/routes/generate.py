"""Routes that an engine answers. Knows paths and their documentation."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from kimi_serve.gateway.answer import answer
from kimi_serve.gateway.prepare import chat_work, completion_work
from kimi_serve.gateway.routes.documented import ANSWERS, CHAT, COMPLETION, takes

router = APIRouter()


@router.post("/v1/chat/completions", responses=ANSWERS, openapi_extra=takes(CHAT), response_class=Response)
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions, with pictures. Fields that the gateway does not know go on to the engine."""
    return await answer(request, "chat", chat_work)


@router.post("/v1/completions", responses=ANSWERS, openapi_extra=takes(COMPLETION), response_class=Response)
async def completions(request: Request) -> Response:
    """OpenAI's text completions."""
    return await answer(request, "chat", completion_work)
