"""Routes that an engine answers. Knows paths and their documentation."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from kimi_serve.gateway.answer import answer
from kimi_serve.gateway.prepare import chat_work, completion_work, messages_work, responses_work
from kimi_serve.gateway.routes.documented import ANSWERS, CHAT, COMPLETION, MESSAGES, RESPONSES, takes

router = APIRouter()


@router.post("/v1/chat/completions", responses=ANSWERS, openapi_extra=takes(CHAT), response_class=Response)
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions, with pictures. Fields that the gateway does not know go on to the engine."""
    return await answer(request, "chat", chat_work)


@router.post("/v1/completions", responses=ANSWERS, openapi_extra=takes(COMPLETION), response_class=Response)
async def completions(request: Request) -> Response:
    """OpenAI's text completions."""
    return await answer(request, "chat", completion_work)


@router.post("/v1/messages", responses=ANSWERS, openapi_extra=takes(MESSAGES), response_class=Response)
async def messages(request: Request) -> Response:
    """Anthropic's Messages, with pictures and tools. Errors have Anthropic's form."""
    return await answer(request, "chat", messages_work)


@router.post("/v1/responses", responses=ANSWERS, openapi_extra=takes(RESPONSES), response_class=Response)
async def create_response(request: Request) -> Response:
    """OpenAI's Responses, with pictures and tools. The server keeps no state: the input is the whole conversation."""
    return await answer(request, "chat", responses_work)
