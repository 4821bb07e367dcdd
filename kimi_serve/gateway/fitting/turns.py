"""Which pictures of a conversation are history, and a body without some of them. Knows messages; counts nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from kimi_serve.protocol import anthropic, chat, responses
from kimi_serve.protocol.anthropic import Messages
from kimi_serve.protocol.chat import ChatRequest, Json

MARKER: Final = "[image left out]"
INPUT_TEXT: Final = "input_text"  # the type of a part of Responses that is text
_INSTRUCTIONS: Final = ("system", "developer")

Read = Callable[[Json], tuple[ChatRequest, Messages | None]]


@dataclass(frozen=True, slots=True)
class Reading:
    """A body and the conversation that it is counted as."""

    body: Json
    asked: ChatRequest
    messages: Messages | None  # Anthropic's, where the body is one
    read: Read  # makes both of another body of the kind
    text_type: str = "text"  # of a part that is text

    def without(self, gone: Collection[int]) -> Reading:
        """The same with a marker in place of these pictures. The body of this one stays as it is."""
        images = self.asked.images
        ids = {id(self.messages.sources[index] if self.messages is not None else images[index].part) for index in gone}
        marker = {"type": self.text_type, "text": MARKER}
        body = dict(self.body)
        for name in ("messages", "input"):
            if isinstance(body.get(name), list):
                body[name] = [_replaced(one, ids, marker) for one in body[name]]
        asked, messages = self.read(body)
        kept = [image for index, image in enumerate(images) if index not in gone]
        for before, image in zip(kept, asked.images, strict=True):
            image.holder[image.key] = before.url  # which may have been fetched already
        named = tuple(replace(image, where=before.where) for before, image in zip(kept, asked.images, strict=True))
        asked = replace(asked, images=named)
        messages = None if messages is None else replace(messages, chat=asked)
        return replace(self, body=body, asked=asked, messages=messages)


def read_chat(body: Json) -> tuple[ChatRequest, Messages | None]:
    """A body that was read before: its number of choices was looked at then."""
    return chat.parse_chat(body, most_choices=sys.maxsize), None


def read_messages(body: Json) -> tuple[ChatRequest, Messages | None]:
    told = anthropic.parse(body, needs_max_tokens=False)
    return told.chat, told


def read_responses(body: Json) -> tuple[ChatRequest, Messages | None]:
    return responses.parse(body), None


def history(asked: ChatRequest) -> list[bool]:
    """For each picture whether it is of the past: neither of the last turn of the user nor of instructions.

    The last turn is the last message of the user's, and all that came after the assistant spoke last, such as what
    tools gave back. A beginning of the answer that is to be continued is no turn.
    """
    messages = asked.messages
    roles = [message.get("role") for message in messages]
    while roles and roles[-1] == "assistant":
        roles.pop()
    answered = max((index for index, role in enumerate(roles) if role == "assistant"), default=-1)
    last = max((index for index, role in enumerate(roles) if role == "user"), default=-1)
    kept: set[int] = set()
    for index, message in enumerate(messages):
        if index > answered or index == last or message.get("role") in _INSTRUCTIONS:
            content = message.get("content")
            kept.update(map(id, content if isinstance(content, list) else ()))
    return [id(image.part) not in kept for image in asked.images]


def _replaced(message: object, gone: Collection[int], marker: Json) -> object:
    if not isinstance(message, dict):
        return message
    changed = dict(message)
    for key in ("content", "output"):
        if isinstance(changed.get(key), list):
            changed[key] = [_part(part, gone, marker) for part in changed[key]]
    return changed


def _part(part: object, gone: Collection[int], marker: Json) -> object:
    if not isinstance(part, dict):
        return part
    if id(part) in gone or id(part.get("source")) in gone:
        return dict(marker)
    return _replaced(part, gone, marker) if part.get("type") == "tool_result" else part
