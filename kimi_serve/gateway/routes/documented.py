"""What OpenAPI says of routes: their bodies, their answers, whole and streamed, and their errors. Knows no request."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from kimi_serve.gateway.routes import schemas
from kimi_serve.gateway.routes.schemas import Schema
from kimi_serve.protocol.errors import CODES

Responses = dict[int | str, dict[str, Any]]

_STREAMS: Final = {
    "chat": "`data:` events with chat.completion.chunk objects and at last `[DONE]`; an error is an event with `error`",
    "completion": "`data:` events with text_completion objects and at last `[DONE]`; an error is an event with `error`",
    "messages": "Anthropic's events from message_start to message_stop, or to `error`",
    "responses": "OpenAI's events from response.created to response.completed, or to `error`",
}
_ABOUT: Final = """
Kimi-VL behind one door. Send `Authorization: Bearer KEY`, or `x-api-key: KEY`, where the server has keys.

Every answer has `x-request-id`; generated ones have `x-kimi-serve-prompt-tokens`. A refusal says in
`x-kimi-serve-reason` why, and 429 and 503 say in `Retry-After` when to come back. While a stream waits it gets
comments, which begin with a colon.
"""


def takes(schema: Schema) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def gives(schema: Schema, what: str) -> Responses:
    return {200: {"description": what, "content": {"application/json": {"schema": schema}}}}


def errors(envelope: Schema = schemas.ERROR) -> Responses:
    """Every status that a refusal can have, with the codes that do."""
    return {
        status: {
            "description": ", ".join(name for name, code in CODES.items() if code.status == status),
            "content": {"application/json": {"schema": envelope}},
        }
        for status in sorted({code.status for code in CODES.values()})
    }


def generates(answer: Schema, stream: str, envelope: Schema = schemas.ERROR) -> Responses:
    """The engine's answer, whole or as a stream."""
    events = {"schema": {**schemas.EVENT, "description": _STREAMS[stream]}}
    content = {"application/json": {"schema": answer}, "text/event-stream": events}
    return {**errors(envelope), 200: {"description": "The engine's answer", "content": content}}


class Documented(FastAPI):
    """FastAPI with what its own document does not say: who may call, and what every answer has."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            document["info"]["description"] = _ABOUT.strip()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["bearer"] = {"type": "http", "scheme": "bearer"}
            schemes["x-api-key"] = {"type": "apiKey", "in": "header", "name": "x-api-key"}
            document["security"] = [{"bearer": []}, {"x-api-key": []}, {}]
        assert self.openapi_schema is not None
        return self.openapi_schema
