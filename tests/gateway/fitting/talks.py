"""Conversations with pictures in every dialect, and what an engine got of one. Knows bodies; sends nothing."""

import base64
import io
import json
import random
from collections.abc import Sequence
from typing import Any

from PIL import Image

from kimi_serve.testing.answers import ROUTES, Kind
from tests.gateway.conftest import MODEL, Front

Json = dict[str, Any]
PATHS = {kind: path for path, kind in ROUTES.items()}
COUNTS = {"chat": "/tokenize", "messages": "/v1/messages/count_tokens", "responses": "/v1/responses/input_tokens"}
DIALECTS: tuple[Kind, ...] = ("chat", "messages", "responses")


def stored(width: int, height: int, kind: str = "PNG", seed: int = 0, **options: object) -> bytes:
    """A picture that is like no other: a few large tiles in colours of their own."""
    tiles = Image.frombytes("RGB", (4, 4), random.Random(seed).randbytes(48))
    out = io.BytesIO()
    tiles.resize((width, height), Image.Resampling.NEAREST).save(out, kind, **options)
    return out.getvalue()


def data(width: int, height: int, seed: int = 0) -> str:
    return base64.b64encode(stored(width, height, seed=seed)).decode()


def part(kind: Kind, picture: str, detail: str | None = None) -> Json:
    url = f"data:image/png;base64,{picture}"
    if kind == "messages":
        return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}}
    if kind == "responses":
        return {"type": "input_image", "image_url": url, **({"detail": detail} if detail else {})}
    return {"type": "image_url", "image_url": {"url": url, **({"detail": detail} if detail else {})}}


def text(kind: Kind, said: str) -> Json:
    return {"type": "input_text" if kind == "responses" else "text", "text": said}


def body(kind: Kind, turns: Sequence[tuple[str, object]], max_tokens: int = 8, **more: object) -> Json:
    """`turns`: role and content."""
    told = [{"role": role, "content": content} for role, content in turns]
    if kind == "responses":
        return {"model": MODEL, "input": told, "max_output_tokens": max_tokens, **more}
    return {"model": MODEL, "messages": told, "max_tokens": max_tokens, **more}


def history(kind: Kind, pictures: Sequence[str], **more: Any) -> Json:
    """A picture a turn, each with an answer but the last."""
    turns: list[tuple[str, object]] = []
    for number, picture in enumerate(pictures):
        if number:
            turns.append(("assistant", f"I see number {number}."))
        turns.append(("user", [text(kind, "And this one?"), part(kind, picture)]))
    return body(kind, turns, **more)


def got(front: Front, index: int = -1) -> list[Json]:
    """Every part of the conversation that the engine got, in order."""
    sent = json.loads(front.engines[0].record.requests[index].body)
    assert "fit" not in sent
    parts = []
    for item in sent.get("messages", sent.get("input")):
        content = item.get("content", item.get("output"))
        for one in content if isinstance(content, list) else []:
            inner = one.get("content") if one.get("type") == "tool_result" else None
            parts += inner if isinstance(inner, list) else [one]
    return parts


def bytes_of(sent: Json) -> bytes:
    """The file in a part that is a picture."""
    source = sent.get("source")
    url = source["data"] if isinstance(source, dict) else sent["image_url"]
    url = url["url"] if isinstance(url, dict) else url
    return base64.b64decode(url.rpartition(",")[2])


def pictures(front: Front, index: int = -1) -> list[bytes]:
    return [bytes_of(one) for one in got(front, index) if one["type"] in ("image", "image_url", "input_image")]


def sizes(front: Front, index: int = -1) -> list[tuple[int, int]]:
    return [Image.open(io.BytesIO(one)).size for one in pictures(front, index)]
