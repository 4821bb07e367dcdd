"""From a body to the work that an engine gets. Knows fields, counts and hashes; opens no connection to an engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from kimi_serve.gateway import parcel, tracing
from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.dialects import ANTHROPIC, CHAT, RESPONSES, Dialect
from kimi_serve.gateway.forward import Work
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.identity import Caller
from kimi_serve.gateway.journey import Journey
from kimi_serve.gateway.parcel import Parcel
from kimi_serve.gateway.pictures import Eye, Seen
from kimi_serve.gateway.prompt_cost import PromptCost, require_fit
from kimi_serve.gateway.replicas.prompt import Picture, Prompt, Text, read_prompt
from kimi_serve.protocol import anthropic, chat, responses
from kimi_serve.protocol.chat import ChatRequest, Json
from kimi_serve.protocol.errors import ApiError

Told = TypeVar("Told", ChatRequest, anthropic.Messages)


async def chat_work(gateway: Gateway, caller: Caller, raw: bytes, reservation: Reservation, request: Request) -> Work:
    given = _given(gateway, raw, request)

    def parse() -> ChatRequest:
        return chat.parse_chat(given.body, most_choices=gateway.settings.policy.max_choices)

    return await _work(gateway, caller, given, parse, reservation, _Route("/v1/chat/completions"))


async def messages_work(
    gateway: Gateway, caller: Caller, raw: bytes, reservation: Reservation, request: Request
) -> Work:
    given = _given(gateway, raw, request)
    route = _Route("/v1/messages", ANTHROPIC)
    return await _work(gateway, caller, given, lambda: anthropic.parse(given.body), reservation, route)


async def responses_work(
    gateway: Gateway, caller: Caller, raw: bytes, reservation: Reservation, request: Request
) -> Work:
    given = _given(gateway, raw, request)
    route = _Route("/v1/responses", RESPONSES, ("input", "max_output_tokens"))
    return await _work(gateway, caller, given, lambda: responses.parse(given.body), reservation, route)


@dataclass(frozen=True, slots=True)
class _Route:
    path: str
    dialect: Dialect = CHAT
    fields: tuple[str, str] = ("messages", "max_tokens")


@dataclass(frozen=True, slots=True)
class _Given:
    """A request as it came, parsed."""

    raw: bytes
    body: Json
    changed: bool  # so that the raw bytes will not do
    headers: Mapping[str, str]
    arrived: float
    journey: Journey


def _given(gateway: Gateway, raw: bytes, request: Request) -> _Given:
    arrived = time.monotonic()
    body = chat.parse_object(raw)
    changed = chat.apply_policy(body, gateway.settings.policy.owned_fields)
    journey: Journey = request.scope["state"]["journey"]
    if journey.span.is_recorded:
        journey.asked = tracing.of_request(body)
    return _Given(raw, body, changed, request.headers, arrived, journey)


async def _work(
    gateway: Gateway,
    caller: Caller,
    given: _Given,
    parse: Callable[[], Told],
    reservation: Reservation,
    route: _Route,
) -> Work:
    """What is parsed is the conversation as a chat; what goes on is the body that was given."""
    told = parse()
    asked = chat_of(told)
    model, limit = model_of(gateway, caller, asked.model)
    given.journey.model, given.journey.stream = model, asked.stream
    changed = given.changed
    if asked.files:
        told = await without_files(gateway, told, parse, reservation, given.journey, limit)
        asked, changed = chat_of(told), True
    cost, seen = await measure(gateway, asked, reservation, given.journey)
    longest = require_fit(cost, asked.max_tokens, limit, route.fields)
    names = [one.name(caller.salt) for one in seen]
    prompt = chat_prompt(caller, asked, cost, names)
    changed |= chat.strip_uuids(given.body.get(route.fields[0]))
    if caller.salt is not None:
        given.body["cache_salt"] = caller.salt
        changed = True
    return Work(
        route.path,
        _parcel(given, told, names, changed=changed),
        model,
        cost,
        longest * asked.n,
        prompt,
        given.headers,
        asked.stream,
        given.arrived,
        route.dialect,
    )


async def without_files(
    gateway: Gateway,
    told: Told,
    parse: Callable[[], Told],
    reservation: Reservation,
    journey: Journey,
    context: int | None = None,
) -> Told:
    """The same conversation, once what its documents and videos show stands in their places in the body."""
    if not told.files:
        return told
    with journey.enter("media"):
        places = told.places()
        places |= await gateway.expander.expand(told.files, len(places), reservation, context)
    return parse().placed(places)


def chat_of(told: ChatRequest | anthropic.Messages) -> ChatRequest:
    return told.chat if isinstance(told, anthropic.Messages) else told


def _parcel(given: _Given, told: ChatRequest | anthropic.Messages, names: Sequence[bytes], *, changed: bool) -> Parcel:
    """The client's own bytes where nothing of them had to change."""
    if not names:
        return Parcel((chat.encode(given.body) if changed else given.raw,))
    if isinstance(told, anthropic.Messages):
        return parcel.wrap_messages(given.body, told, names)
    return parcel.wrap(given.body, told.images, names)


async def completion_work(
    gateway: Gateway, caller: Caller, raw: bytes, reservation: Reservation, request: Request
) -> Work:
    given = _given(gateway, raw, request)
    body, changed = given.body, given.changed
    model, limit = model_of(gateway, caller, chat.field(body, "model", str))
    given.journey.model, given.journey.stream = model, bool(chat.field(body, "stream", bool))
    if body.get("prompt") in (None, "", []):
        raise ApiError("invalid_value", "prompt: expected text or token ids", param="prompt")
    costs = gateway.meter.texts(body["prompt"])
    max_tokens = chat.field(body, "max_tokens", int, at_least=1)
    asked = 16 if max_tokens is None else max_tokens  # OpenAI's default, and vLLM's
    for one in costs:  # every prompt of a list has a context of its own
        require_fit(one, asked, limit)
    cost = PromptCost(sum(one.text_tokens for one in costs), (), 0)
    given.journey.prompt_tokens = cost.tokens
    if caller.salt is not None:
        body["cache_salt"] = caller.salt
        changed = True
    opening = chat.encode({"prompt": body["prompt"]})
    return Work(
        "/v1/completions",
        Parcel((chat.encode(body) if changed else raw,)),
        model,
        cost,
        asked * chat.choices(body, gateway.settings.policy.max_choices) * len(costs),
        read_prompt([Text(opening, cost.tokens)], (caller.salt or "").encode(), 1),
        given.headers,
        given.journey.stream,
        given.arrived,
    )


def model_of(gateway: Gateway, caller: Caller, asked: str | None) -> tuple[str, int]:
    """The model that is meant, and its context in tokens. Without a name: the only one that is served."""
    models = gateway.fleet.models()
    if not models:
        raise ApiError("no_replica", "no engine is ready; retry later", retry_after=5.0)
    name = asked if asked is not None else next(iter(models))
    if name not in models:
        served = ", ".join(sorted(models))
        raise ApiError("model_not_found", f"model: {chat.short(name)} is not served; served: {served}", param="model")
    caller.require_model(name)
    return name, models[name]


async def measure(
    gateway: Gateway, asked: ChatRequest, reservation: Reservation, journey: Journey
) -> tuple[PromptCost, Sequence[Seen]]:
    """The exact cost, and what every picture is."""
    eye = Eye(gateway.settings.media, gateway.fetcher, gateway.metrics)
    with journey.enter("media") if asked.images else nullcontext():
        seen = await eye.look(asked.images, reservation)
    places = [image.where for image in asked.images]
    cost = gateway.meter.chat(asked.body, [one.size for one in seen], places)
    journey.images, journey.image_tokens, journey.prompt_tokens = len(seen), sum(cost.image_tokens), cost.tokens
    return cost, seen


def chat_prompt(caller: Caller, asked: ChatRequest, cost: PromptCost, names: Sequence[bytes]) -> Prompt:
    """The conversation as a chain of hashes; a message's text has its share of the text's tokens, by its length."""
    pictures = iter(zip(names, cost.image_tokens, strict=True))
    are_images = {id(image.part) for image in asked.images}
    parts: list[bytes | Picture] = []
    opening = 0
    for message in asked.messages:
        parts.append(f"\x00{message.get('role')}\x00".encode())
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            if id(part) in are_images:
                parts.append(Picture(*next(pictures)))
            else:
                parts.append(_text(part))
        if not opening and message.get("role") == "user":
            opening = len(parts)
    letters = sum(len(part) for part in parts if isinstance(part, bytes))
    rate = cost.text_tokens / max(1, letters)
    told: list[Text | Picture] = [
        part if isinstance(part, Picture) else Text(part, round(len(part) * rate)) for part in parts
    ]
    return read_prompt(told, (caller.salt or "").encode(), opening or len(told))


def _text(part: object) -> bytes:
    if isinstance(part, str):
        return part.encode("utf-8", "surrogatepass")
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"]).encode("utf-8", "surrogatepass")
    return b"" if part is None else chat.encode({"part": part})
