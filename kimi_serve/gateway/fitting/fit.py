"""A request's pictures looked at, and made to fit. Knows the order of the steps; plan.py decides and scaling/ decodes.

Where only a count is asked for, everything is planned and nothing decoded: the plan is made of sizes alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.fitting.plan import FITS, STEPS, Bounds, Fit, Picture, Plan, Size, decide
from kimi_serve.gateway.fitting.told import Told
from kimi_serve.gateway.fitting.turns import MARKER, Reading, history
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.journey import Journey
from kimi_serve.gateway.media import data_urls
from kimi_serve.gateway.pictures import Eye, Seen, placed
from kimi_serve.gateway.prompt_cost import PromptCost, require_fit
from kimi_serve.gateway.scaling.pool import Job
from kimi_serve.gateway.scaling.scaler import Key, Scaled
from kimi_serve.protocol.chat import ImagePart, Json, short
from kimi_serve.protocol.errors import ApiError


def take_option(body: Json) -> Fit | None:
    """The gateway's own field of a body, which no engine gets to see; None where there is none. Raises ApiError."""
    given = body.pop("fit", None)
    if given is None:
        return None
    if given not in FITS:
        what = f"fit: {short(given)} is not supported; expected {', '.join(FITS)}"
        raise ApiError("invalid_value", what, param="fit")
    found: Fit = given
    return found


@dataclass(frozen=True, slots=True)
class Fitted:
    """What goes on, and what it costs."""

    reading: Reading
    cost: PromptCost
    seen: Sequence[Seen]
    told: Told | None  # where something was done, or asked for


@dataclass(frozen=True, slots=True)
class Asking:
    """How a request wants to be fitted, and into what."""

    fit: Fit | None
    limit: int  # tokens of the model's context
    salt: str | None
    fields: tuple[str, str] = ("messages", "max_tokens")  # what the route calls prompt and limit
    only_counts: bool = False


async def fitted(
    gateway: Gateway, reading: Reading, asking: Asking, reservation: Reservation, journey: Journey
) -> Fitted:
    """The exact cost of what goes on, and what every picture is. Raises ApiError."""
    caps = [_cap(gateway, image) for image in reading.asked.images]
    unseen = _too_many(gateway, reading) if asking.fit == "elide_oldest" else []
    few = reading.without(unseen) if unseen else reading
    eye = Eye(gateway.settings.media, gateway.fetcher, gateway.metrics)
    with journey.enter("media") if few.asked.images else nullcontext():
        seen = await eye.look(few.asked.images, reservation)
    gone = set(unseen)
    pictures = _pictures(gateway, few, seen, [cap for index, cap in enumerate(caps) if index not in gone])
    if asking.fit in (None, "error"):
        plan = _decided(gateway, few, pictures, asking)
    else:  # 512 sizes at eight factors, or a long text counted three times: the others' tokens go on meanwhile
        plan = await asyncio.to_thread(_decided, gateway, few, pictures, asking)
    told = _told(gateway, few, unseen, pictures, plan, asking.fit)
    left = few.without(plan.left_out) if plan.left_out else few
    kept = [index for index, size in enumerate(plan.sizes) if size is not None]
    stays = [(seen[index], plan.sizes[index] or (0, 0)) for index in kept]
    pixels = sum(width * height for _, (width, height) in stays)
    cost = PromptCost(plan.text_tokens, tuple(plan.tokens[index] for index in kept), pixels)
    journey.fitted(cost, told)
    if not asking.only_counts:
        with journey.enter("media") if told.scaled else nullcontext():
            seen = await _scaled(gateway, asking.salt, left.asked.images, stays, reservation)
        _count(gateway, told)
    return Fitted(left, cost, seen, told if asking.fit is not None or told.has_changed else None)


def _cap(gateway: Gateway, image: ImagePart) -> int | None:
    media = gateway.settings.media
    return {"low": media.low_tokens, "auto": media.auto_tokens, "high": None}[image.detail]


def _too_many(gateway: Gateway, reading: Reading) -> list[int]:
    """The oldest pictures of the history that are more than one prompt may hold. They are neither fetched nor seen."""
    over = len(reading.asked.images) - gateway.settings.media.max_images
    if over <= 0:
        return []
    return [index for index, may_go in enumerate(history(reading.asked)) if may_go][:over]


def _pictures(gateway: Gateway, reading: Reading, seen: Sequence[Seen], caps: Sequence[int | None]) -> list[Picture]:
    images, past = reading.asked.images, history(reading.asked)
    return [
        Picture(one.size, gateway.meter.image(one.size, image.where), cap, may_go)
        for one, image, cap, may_go in zip(seen, images, caps, past, strict=True)
    ]


def _decided(gateway: Gateway, reading: Reading, pictures: Sequence[Picture], asking: Asking) -> Plan:
    fit, meter, most = asking.fit or "error", gateway.meter, reading.asked.max_tokens

    def text(gone: frozenset[int]) -> int:
        left = reading.without(gone) if gone else reading
        return meter.text(left.asked.body, len(left.asked.images))

    marker = meter.extra(MARKER) if fit == "elide_oldest" else 0
    bounds = Bounds(asking.limit - (most or 1), gateway.settings.media.floor_tokens, marker)
    plan = decide(fit, pictures, meter.geometry, bounds, text)
    if not plan.fits and fit != "error":
        came = PromptCost(text(frozenset()), tuple(one.tokens for one in pictures), 0)
        least = f"; fit {fit} brings the prompt down to {plan.total} tokens and no further"
        require_fit(came, most, asking.limit, asking.fields, least)
    return plan


def _told(
    gateway: Gateway, reading: Reading, unseen: Sequence[int], pictures: Sequence[Picture], plan: Plan, fit: Fit | None
) -> Told:
    before: list[int | None] = [one.tokens for one in pictures]
    after = [None if size is None else count for size, count in zip(plan.sizes, plan.tokens, strict=True)]
    text = plan.text_tokens
    if plan.left_out:
        text = gateway.meter.text(reading.asked.body, len(pictures))
    for index in unseen:  # in rising order
        before.insert(index, None)
        after.insert(index, None)
    return Told(fit or "error", before, after, text, plan.text_tokens, plan.steps)


async def _scaled(
    gateway: Gateway,
    salt: str | None,
    images: Sequence[ImagePart],
    stays: Sequence[tuple[Seen, Size]],
    reservation: Reservation,
) -> list[Seen]:
    """Each picture in its size. Those that have another get other bytes, and with them another name."""
    found, wanted = [one for one, _ in stays], _to_scale(salt, stays)
    left = iter(wanted.items())

    async def some() -> None:
        for key, places in left:
            scaled = await _one(gateway, images[places[0]], stays[places[0]][0], key)
            reservation.reserve(len(scaled.url))
            for index in places:
                images[index].holder[images[index].key] = scaled.url
                found[index] = replace(found[index], size=key.wanted, hash=scaled.hash)

    deadline_s = gateway.settings.admission.deadline_s
    try:
        async with asyncio.timeout(deadline_s), asyncio.TaskGroup() as tasks:
            # As many at once as there are workers: so requests take turns, however many pictures one has.
            for _ in range(min(len(wanted), gateway.settings.scaling.workers)):
                tasks.create_task(some())
    except TimeoutError:
        message = f"{len(wanted)} images were not scaled down within the {deadline_s:g} s that a request waits at most"
        raise ApiError("queue_timeout", message) from None
    except ExceptionGroup as group:
        raise next((error for error in group.exceptions if isinstance(error, ApiError)), group) from None
    return found


def _to_scale(salt: str | None, stays: Sequence[tuple[Seen, Size]]) -> dict[Key, list[int]]:
    """What is to be made, and of which pictures: the same one comes twice where a client shows it twice."""
    wanted: dict[Key, list[int]] = {}
    for index, (one, size) in enumerate(stays):
        if one.size != size:
            wanted.setdefault(Key(salt or "", one.hash, size), []).append(index)
    return wanted


async def _one(gateway: Gateway, image: ImagePart, seen: Seen, key: Key) -> Scaled:
    metrics = gateway.metrics
    try:
        if (scaled := gateway.scaler.cache.get(key)) is not None:
            metrics.scale_hits.inc()
            return scaled
        data = data_urls.decode(image.url, max_bytes=gateway.settings.media.max_bytes)
        with metrics.scale_seconds.time():
            return await gateway.scaler.make(key, Job(data, seen.format, seen.size, key.wanted))
    except ApiError as error:
        metrics.scale_failures.labels(error.code).inc()
        raise placed(error, image) from error


def _count(gateway: Gateway, told: Told) -> None:
    metrics = gateway.metrics
    if told.scaled:
        metrics.scaled_images.labels("downscale" if told.steps < STEPS else "detail").inc(told.scaled)
    metrics.left_out_images.inc(told.left_out)
    if told.tokens_before is not None:
        metrics.spared_tokens.inc(told.tokens_before - told.tokens_after)
