"""From a scenario and a number to a request's body. Knows OpenAI's chat; not when it is sent, nor to whom.

What is drawn (lengths, sizes, who leaves) follows from the scenario's seed and the number alone. The salt changes what
texts say and pictures show: the same work again, of which a server's caches have nothing.
"""

from __future__ import annotations

import base64
import json
import random
from dataclasses import dataclass

from benchmarks.load import material
from benchmarks.load.scenarios import DocumentPart, HistoryPart, ImagesPart, Part, Scenario, TextPart, VideoPart

Content = list[dict[str, object]]
Message = dict[str, object]


@dataclass(frozen=True, slots=True)
class Ask:
    number: int
    part: str
    body: bytes
    cancel_after_s: float | None = None  # when this client leaves


@dataclass(frozen=True, slots=True)
class Talk:
    """What is asked, before it is a body."""

    part: Part
    messages: list[Message]
    cancel_after_s: float | None


def ask(scenario: Scenario, model: str, number: int, salt: str) -> Ask:
    talk = converse(scenario, number, salt)
    body = {
        "model": model,
        "messages": talk.messages,
        "max_completion_tokens": talk.part.answer_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if scenario.ignore_eos else {}),
    }
    return Ask(number, talk.part.name, json.dumps(body).encode(), talk.cancel_after_s)


def converse(scenario: Scenario, number: int, salt: str) -> Talk:
    draw = random.Random(f"{scenario.seed} {number}")
    part, leaves = _drawn(scenario, draw)
    length = draw.randint(*part.words)
    seed = f"{salt}-{number:06d}"
    # The number comes first: no prompt begins as another does, so none is in a cache of prefixes.
    question = f"{seed} {material.words(random.Random(seed), length)}?"
    match part:
        case TextPart():
            messages = [_user([_text(question)])]
        case ImagesPart():
            shown = [_picture(material.photograph(f"{seed} {n}", draw.choice(part.sizes))) for n in range(part.count)]
            messages = [_user([_text(question), *shown])]
        case DocumentPart():
            file = _data_url("application/pdf", material.document(seed, part.pages))
            messages = [_user([_text(question), {"type": "file", "file": {"file_data": file, "filename": "load.pdf"}}])]
        case VideoPart():
            url = _data_url("video/mp4", material.film(seed, part.size, part.seconds))
            video = {"type": "video_url", "video_url": {"url": url}, "frames": part.frames}
            messages = [_user([_text(question), video])]
        case HistoryPart():
            messages = _history(part, number, question, salt)
    return Talk(part, messages, leaves)


def leaves_after(scenario: Scenario, number: int) -> float | None:
    """When the client of this request leaves, without what it asks."""
    return _drawn(scenario, random.Random(f"{scenario.seed} {number}"))[1]


def _drawn(scenario: Scenario, draw: random.Random) -> tuple[Part, float | None]:
    part = draw.choices(scenario.parts, [one.weight for one in scenario.parts])[0]
    leaves = draw.uniform(*part.cancel.after_s) if part.cancel and draw.random() < part.cancel.share else None
    return part, leaves


def _history(part: HistoryPart, number: int, question: str, salt: str) -> list[Message]:
    """This agent's last screenshots, oldest first, each in a turn of its own; the newest comes with the question."""
    session, turn = number % part.sessions, number // part.sessions
    first = turn * part.fresh
    messages: list[Message] = [{"role": "system", "content": f"{salt} {session}: say what to do next."}]
    for shown in range(first, first + part.images):
        seed = f"{salt} {session} {shown}"
        told = _text(question if shown == first + part.images - 1 else material.words(random.Random(seed), 8))
        messages.append(_user([told, _picture(material.screenshot(seed, part.size), "png")]))
        messages.append({"role": "assistant", "content": f"I press button {shown}."})
    return messages[:-1]


def _user(content: Content) -> Message:
    return {"role": "user", "content": content}


def _text(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def _picture(image: bytes, form: str = "jpeg") -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": _data_url(f"image/{form}", image)}}


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
