"""The pages of one document, as pictures and text. Knows which, how large and at what cost; renders nothing itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from kimi_serve.gateway.expansion.child.wire import Json
from kimi_serve.gateway.expansion.pages import Range, read_pages
from kimi_serve.gateway.expansion.room import Room
from kimi_serve.gateway.expansion.workers import Limits, Worker
from kimi_serve.gateway.media import data_urls
from kimi_serve.gateway.prompt_cost import Meter
from kimi_serve.gateway.settings import Documents
from kimi_serve.protocol.errors import ApiError, short
from kimi_serve.protocol.files import DOCUMENT_OPTIONS, FilePart, Image

READER: Final = "pdf"
_POINTS_AN_INCH: Final = 72


class _Opened(msgspec.Struct):
    pages: list[int]
    sizes: list[tuple[float, float]]  # in points


class _Page(msgspec.Struct):
    media_type: Literal["image/png", "image/jpeg"]
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A part's own fields."""

    pages: list[Range] | None
    text: bool


def read_options(file: FilePart) -> Asked:
    options = file.options(DOCUMENT_OPTIONS)
    text = options.get("text", False)
    if not isinstance(text, bool):
        what = f"{file.where}.text: {short(text)} is not supported; expected true or false"
        raise ApiError("invalid_value", what, param=f"{file.where}.text")
    return Asked(read_pages(options.get("pages"), file.where), text)


def limits(rules: Documents, memory_bytes: int, most_bytes: int) -> Limits:
    return Limits(memory_bytes, rules.cpu_s, rules.timeout_s, most_bytes)


def sizes_in_pixels(points: list[tuple[float, float]], rules: Documents, meter: Meter) -> list[tuple[int, int]]:
    """Of every page the largest picture within its tokens and the resolution."""
    scale = rules.max_dpi / _POINTS_AN_INCH
    return [meter.geometry.largest(*size, tokens=rules.page_tokens, scale=scale) for size in points]


async def show(
    worker: Worker, limits: Limits, data: bytes, asked: Asked, rules: Documents, meter: Meter, room: Room
) -> AsyncIterator[str | Image]:
    """Each page's picture, and behind it its text where that was asked for. Nothing is drawn that cannot be sent."""
    told = await worker.open(limits, {"ranges": asked.pages, "most": rules.max_pages}, data, _Opened)
    sizes = sizes_in_pixels(told.sizes, rules, meter)
    room.take(sizes, "pages", "choose fewer `pages`")
    pages = [(number, *size) for number, size in zip(told.pages, sizes, strict=True)]
    plan: Json = {"pages": pages, "text": asked.text, "most_text": rules.max_text_chars}
    async for head, shown in worker.show(plan, _Page):
        yield Image(data_urls.encode(shown, head.media_type))
        if head.text:
            yield head.text
