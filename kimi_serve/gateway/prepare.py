"""From a body to the work that an engine gets. Knows fields, counts and hashes; opens no connection to an engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request

from kimi_serve.gateway import parcel, tracing
from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.dialects import ANTHROPIC, CHAT, RESPONSES, Dialect
from kimi_serve.gateway.files.references import fill_in
from kimi_serve.gateway.fitting import turns
from kimi_serve.gateway.fitting.fit import Asking, fitted, take_option
from kimi_serve.gateway.fitting.plan import Fit
from kimi_serve.gateway.fitting.turns import Reading
from kimi_serve.gateway.forward import Work
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.identity import Caller
from kimi_serve.gateway.journey import Journey
from kimi_serve.gateway.parcel import Parcel
from kimi_serve.gateway.prompt_cost import PromptCost, require_fit
from kimi_serve.gateway.replicas.prompt import Picture, Prompt, Text, read_prompt
from kimi_serve.protocol import anthropic, chat, responses
from kimi_serve.protocol.chat import ChatRequest, Json
from kimi_serve.protocol.errors import ApiError

Told = ChatRequest | anthropic.Messages


async def chat_work(gateway: Gateway, caller: Caller, raw: bytes, reservation: Reservation, request: Request) -> Work:
    given = await _given(gateway, caller, raw, reservation, request)

    def parse() -> ChatRequest:
        return chat.parse_chat(given.body, most_choices=gateway.settings.policy.max_choices)

    return await _work(gateway, caller, given, parse, reservation, _Route("/v1/chat/completions"))


async def messages_work(
    gateway: Gateway, caller: Caller, raw: bytes, reservation: Reservation, request: Request
) -> Work:
    given = await _given(gateway, caller, raw, reservation, request)
    route = _Route("/v1/messages", ANTHROPIC, read=turns.read_messages)
    return await _work(gateway, caller, given, lambda: anthropic.parse(given.body), reservation, route)


async def responses_work(
    gateway: Gateway, caller: Caller, raw: bytes, reservation: Reservation, request: Request
) -> Work:
    given = await _given(gateway, caller, raw, reservation, request)
    route = _Route("/v1/responses", RESPONSES, ("input", "max_output_tokens"), turns.read_responses, turns.INPUT_TEXT)
    return await _work(gateway, caller, given, lambda: responses.parse(given.body), reservation, route)


@dataclass(frozen=True, slots=True)
class _Route:
    path: str
    dialect: Dialect = CHAT
    fields: tuple[str, str] = ("messages", "max_tokens")
    read: turns.Read = turns.read_chat
    text_type: str = "text"


@dataclass(frozen=True, slots=True)
class _Given:
    """A request as it came, parsed."""

    raw: bytes
    body: Json
    fit: Fit | None
    changed: bool  # so that the raw bytes will not do
    headers: Mapping[str, str]
    arrived: float
    journey: Journey


async def _given(gateway: Gateway, caller: Caller, raw: bytes, reservation: Reservation, request: Request) -> _Given:
    arrived = time.monotonic()
    body = chat.parse_object(raw)
    changed = chat.apply_policy(body, gateway.settings.policy.owned_fields)
    changed |= "fit" in body
    fit = take_option(body)
    changed |= await with_files(gateway, caller, body, reservation)
    journey: Journey = request.scope["state"]["journey"]
    if journey.span.is_recorded:
        journey.asked = tracing.of_request(body)
    return _Given(raw, body, fit, changed, request.headers, arrived, journey)


async def with_files(gateway: Gateway, caller: Caller, body: Json, reservation: Reservation) -> bool:
    """The bytes of the files that a body names, in their places; whether it names any."""
    files = None if gateway.archive is None else gateway.archive.files
    most = gateway.settings.body.max_bytes
    return await fill_in(body, files, caller.tenant, reservation, most)


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
        context = limit if given.fit in (None, "error") else None  # else what they show may yet be made to fit
        told, changed = await without_files(gateway, caller, told, parse, reservation, given.journey, context), True
    reading = Reading(given.body, chat_of(told), messages_of(told), route.read, route.text_type)
    asking = Asking(given.fit, limit, caller.salt, route.fields)
    fit = await fitted(gateway, reading, asking, reservation, given.journey)
    asked, cost = fit.reading.asked, fit.cost
    changed |= fit.reading is not reading
    given = replace(given, body=fit.reading.body)
    longest = require_fit(cost, asked.max_tokens, limit, route.fields)
    names = [one.name(caller.salt) for one in fit.seen]
    prompt = chat_prompt(caller, asked, cost, names)
    changed |= chat.strip_uuids(given.body.get(route.fields[0]))
    if caller.salt is not None:
        given.body["cache_salt"] = caller.salt
        changed = True
    return Work(
        route.path,
        _parcel(given, fit.reading, names, changed=changed),
        model,
        cost,
        longest * asked.n,
        prompt,
        given.headers,
        asked.stream,
        given.arrived,
        route.dialect,
        fit.told,
    )


async def without_files(
    gateway: Gateway,
    caller: Caller,
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
        places |= await gateway.expander.expand(told.files, len(places), reservation, context, caller.salt or "")
    return parse().placed(places)


def chat_of(told: Told) -> ChatRequest:
    return told.chat if isinstance(told, anthropic.Messages) else told


def messages_of(told: Told) -> anthropic.Messages | None:
    return told if isinstance(told, anthropic.Messages) else None


def _parcel(given: _Given, reading: Reading, names: Sequence[bytes], *, changed: bool) -> Parcel:
    """The client's own bytes where nothing of them had to change."""
    if not names:
        return Parcel((chat.encode(given.body) if changed else given.raw,))
    if reading.messages is not None:
        return parcel.wrap_messages(given.body, reading.messages, names)
    return parcel.wrap(given.body, reading.asked.images, names)


async def completion_work(
    gateway: Gateway, caller: Caller, raw: bytes, reservation: Reservation, request: Request
) -> Work:
    given = await _given(gateway, caller, raw, reservation, request)
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
