"""Routes that need no engine: counts, models, health, metrics. Knows what the gateway knows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kimi_serve.gateway import body
from kimi_serve.gateway.answer import caller_of
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.prepare import Told, chat_of, measure, model_of, without_files
from kimi_serve.gateway.routes import schemas
from kimi_serve.gateway.routes.documented import errors, gives, takes
from kimi_serve.protocol import anthropic, chat, responses
from kimi_serve.protocol.chat import ChatRequest, Json
from kimi_serve.protocol.errors import ApiError

router = APIRouter()


@router.get("/v1/models", responses=errors() | gives(schemas.MODELS, "The models"))
async def models(request: Request) -> JSONResponse:
    """The models that a ready engine serves and this key may use."""
    gateway: Gateway = request.state.gateway
    caller = await caller_of(request, "models")
    listed = [
        {"id": name, "object": "model", "created": 0, "owned_by": "kimi_serve", "max_model_len": length}
        for name, length in sorted(gateway.fleet.models().items())
        if caller.key is None or caller.key.allows(name)
    ]
    return JSONResponse({"object": "list", "data": listed})


@router.post(
    "/tokenize", responses=errors() | gives(schemas.TOKENS, "The tokens"), openapi_extra=takes(schemas.TOKENIZE)
)
async def tokenize(request: Request) -> JSONResponse:
    """The tokens of a prompt or a conversation, pictures included; `image_tokens` counts each picture's."""
    gateway: Gateway = request.state.gateway
    async with AsyncExitStack() as stack:
        caller = await caller_of(request, "tokenize")
        reservation = stack.enter_context(gateway.ledger.body(caller.tenant))
        asked = chat.parse_object(await body.read(request, reservation, gateway.settings.body))
        request.state.journey.model, limit = model_of(gateway, caller, chat.field(asked, "model", str))
        if "messages" in asked:
            journey, most = request.state.journey, gateway.settings.policy.max_choices

            def parse() -> ChatRequest:
                return chat.parse_chat(asked, most_choices=most)

            parsed = await without_files(gateway, parse(), parse, reservation, journey)
            cost, _ = await measure(gateway, parsed, reservation, journey)
            counts = list(cost.image_tokens)
            pad = gateway.meter.tokenizer.special_id("<|media_pad|>")
            left = iter(counts)
            tokens = [i for each in gateway.meter.ids(asked) for i in [each] * (next(left) if each == pad else 1)]
        else:
            prompt = asked.get("prompt")
            if not isinstance(prompt, str):
                raise ApiError("invalid_value", "prompt: expected text, or messages instead", param="prompt")
            tokens, counts = gateway.meter.tokenizer.encode(prompt), []
    found: dict[str, Any] = {"count": len(tokens), "max_model_len": limit, "tokens": tokens, "image_tokens": counts}
    return JSONResponse(found)


@router.post(
    "/v1/messages/count_tokens",
    responses=errors(schemas.ANTHROPIC_ERROR) | gives(schemas.INPUT_TOKENS, "The count"),
    openapi_extra=takes(schemas.MESSAGES_COUNT),
)
async def count_messages(request: Request) -> JSONResponse:
    """The tokens of an Anthropic request, tools and pictures included; asks no engine."""
    tokens = await _count(request, lambda body: anthropic.parse(body, needs_max_tokens=False))
    return JSONResponse({"input_tokens": tokens})


@router.post(
    "/v1/responses/input_tokens",
    responses=errors() | gives(schemas.RESPONSES_TOKENS, "The count"),
    openapi_extra=takes(schemas.RESPONSES_COUNT),
)
async def count_input(request: Request) -> JSONResponse:
    """The tokens of a Responses request, tools and pictures included; asks no engine."""
    tokens = await _count(request, responses.parse)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})


async def _count(request: Request, parse: Callable[[Json], Told]) -> int:
    gateway: Gateway = request.state.gateway
    async with AsyncExitStack() as stack:
        caller = await caller_of(request, "tokenize")
        reservation = stack.enter_context(gateway.ledger.body(caller.tenant))
        given = chat.parse_object(await body.read(request, reservation, gateway.settings.body))
        chat.apply_policy(given, gateway.settings.policy.owned_fields)
        told, journey = parse(given), request.state.journey
        journey.model, _ = model_of(gateway, caller, told.model)
        told = await without_files(gateway, told, lambda: parse(given), reservation, journey)
        cost, _ = await measure(gateway, chat_of(told), reservation, journey)
        return cost.tokens


@router.get("/livez", responses=gives(schemas.LIVENESS, "Alive"))
async def livez() -> JSONResponse:
    """200 while the process answers."""
    return JSONResponse({"status": "alive"})


@router.get(
    "/readyz",
    responses={
        **gives(schemas.READINESS, "Ready"),
        503: {"description": "Not ready", "content": {"application/json": {"schema": schemas.READINESS}}},
    },
)
async def readyz(request: Request) -> JSONResponse:
    """200 while new requests are taken and an engine is ready for them."""
    gateway: Gateway = request.state.gateway
    draining = gateway.leaving.is_announced or gateway.admission.snapshot().is_draining
    engines = {replica.url: replica.problem or "ready" for replica in gateway.fleet.snapshot()}
    ready = gateway.fleet.ready > 0 and not draining
    state = "draining" if draining else "ready" if ready else "no engine is ready"
    return JSONResponse({"status": state, "engines": engines}, 200 if ready else 503)


@router.get(
    "/metrics", responses={200: {"description": "Metrics", "content": {"text/plain": {}}}}, response_class=Response
)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    gateway: Gateway = request.state.gateway
    gateway.measure()
    return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)
