"""Routes that need no engine: counts, models, health, metrics. Knows what the gateway knows."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kimi_serve.gateway import body
from kimi_serve.gateway.answer import caller_of
from kimi_serve.gateway.fitting import turns
from kimi_serve.gateway.fitting.fit import Asking, Fitted, fitted, take_option
from kimi_serve.gateway.fitting.told import NAME
from kimi_serve.gateway.fitting.turns import Reading
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.prepare import Told, chat_of, messages_of, model_of, with_files, without_files
from kimi_serve.gateway.routes import schemas
from kimi_serve.gateway.routes.documented import errors, gives, takes
from kimi_serve.protocol import chat
from kimi_serve.protocol.chat import ChatRequest
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
        await with_files(gateway, caller, asked, reservation)
        told: dict[str, Any] = {}
        if "messages" in asked:
            journey, most = request.state.journey, gateway.settings.policy.max_choices
            option = take_option(asked)

            def parse() -> ChatRequest:
                return chat.parse_chat(asked, most_choices=most)

            parsed = await without_files(gateway, caller, parse(), parse, reservation, journey)
            reading = Reading(asked, chat_of(parsed), None, turns.read_chat)
            asking = Asking(option, limit, caller.salt, only_counts=True)
            fit = await fitted(gateway, reading, asking, reservation, journey)
            asked, counts, told = fit.reading.asked.body, list(fit.cost.image_tokens), _told(fit)
            pad = gateway.meter.tokenizer.special_id("<|media_pad|>")
            left = iter(counts)
            tokens = [i for each in gateway.meter.ids(asked) for i in [each] * (next(left) if each == pad else 1)]
        else:
            prompt = asked.get("prompt")
            if not isinstance(prompt, str):
                raise ApiError("invalid_value", "prompt: expected text, or messages instead", param="prompt")
            tokens, counts = gateway.meter.tokenizer.encode(prompt), []
    found: dict[str, Any] = {"count": len(tokens), "max_model_len": limit, "tokens": tokens, "image_tokens": counts}
    found |= told
    return JSONResponse(found)


@router.post(
    "/v1/messages/count_tokens",
    responses=errors(schemas.ANTHROPIC_ERROR) | gives(schemas.INPUT_TOKENS, "The count"),
    openapi_extra=takes(schemas.MESSAGES_COUNT),
)
async def count_messages(request: Request) -> JSONResponse:
    """The tokens of an Anthropic request, tools and pictures included; asks no engine."""
    return JSONResponse(await _count(request, turns.read_messages))


@router.post(
    "/v1/responses/input_tokens",
    responses=errors() | gives(schemas.RESPONSES_TOKENS, "The count"),
    openapi_extra=takes(schemas.RESPONSES_COUNT),
)
async def count_input(request: Request) -> JSONResponse:
    """The tokens of a Responses request, tools and pictures included; asks no engine."""
    counted = await _count(request, turns.read_responses, ("input", "max_output_tokens"), turns.INPUT_TEXT)
    return JSONResponse({"object": "response.input_tokens", **counted})


async def _count(
    request: Request,
    read: turns.Read,
    fields: tuple[str, str] = ("messages", "max_tokens"),
    text_type: str = "text",
) -> dict[str, Any]:
    gateway: Gateway = request.state.gateway
    async with AsyncExitStack() as stack:
        caller = await caller_of(request, "tokenize")
        reservation = stack.enter_context(gateway.ledger.body(caller.tenant))
        given = chat.parse_object(await body.read(request, reservation, gateway.settings.body))
        chat.apply_policy(given, gateway.settings.policy.owned_fields)
        option = take_option(given)
        await with_files(gateway, caller, given, reservation)

        def parse() -> Told:
            asked, messages = read(given)
            return asked if messages is None else messages

        told, journey = parse(), request.state.journey
        journey.model, limit = model_of(gateway, caller, chat_of(told).model)
        told = await without_files(gateway, caller, told, parse, reservation, journey)
        asking = Asking(option, limit, caller.salt, fields, only_counts=True)
        reading = Reading(given, chat_of(told), messages_of(told), read, text_type)
        fit = await fitted(gateway, reading, asking, reservation, journey)
        return {"input_tokens": fit.cost.tokens, **_told(fit)}


def _told(fit: Fitted) -> dict[str, Any]:
    return {} if fit.told is None else {NAME: fit.told.whole()}


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
