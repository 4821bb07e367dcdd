"""Anthropic's Messages as an equal chat request, for counting. Knows both shapes; what is forwarded is the original.

The conversation is the one that vLLM 0.32 makes of the same body: all system texts joined into one first message, a
tool's result as a message of its own before the rest of its turn, its pictures in a user's message behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from kimi_serve.protocol import chat, files
from kimi_serve.protocol.chat import ChatRequest, ImagePart, Json
from kimi_serve.protocol.errors import ApiError, kind_of
from kimi_serve.protocol.files import FilePart
from kimi_serve.protocol.settled import BILLING

_MEDIA_TYPE: Final = re.compile(r"[a-z]+/[a-z0-9.+-]+")
_SILENT: Final = ("redacted_thinking", "tool_reference")  # taken, and not part of the prompt


@dataclass(frozen=True, slots=True)
class Messages:
    chat: ChatRequest
    sources: tuple[Json, ...]  # of the original body, for each of chat.images

    @property
    def files(self) -> tuple[FilePart, ...]:
        return self.chat.files

    @property
    def model(self) -> str | None:
        return self.chat.model

    def places(self) -> dict[int, str]:
        return {id(source): image.where for source, image in zip(self.sources, self.chat.images, strict=True)}

    def placed(self, places: Mapping[int, str]) -> Messages:
        """As ChatRequest.placed: here what holds an image in the client's body is its source."""
        pairs = zip(self.sources, self.chat.images, strict=True)
        images = tuple(replace(image, where=places[id(source)]) for source, image in pairs)
        return replace(self, chat=replace(self.chat, images=images))


def parse(body: Json, *, needs_max_tokens: bool = True) -> Messages:
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise ApiError("invalid_value", "messages: expected a list with at least one message", param="messages")
    max_tokens = chat.field(body, "max_tokens", int, at_least=1)
    if needs_max_tokens and max_tokens is None:
        raise ApiError("invalid_value", "max_tokens: is missing; expected an integer", param="max_tokens")
    conversation = _Conversation()
    conversation.read(body.get("system"), given)
    told: Json = {"messages": conversation.messages}
    if body.get("tools") is not None:
        told["tools"] = _tools(body["tools"])
    if (options := chat.field(body, "chat_template_kwargs", dict)) is not None:
        told["chat_template_kwargs"] = options
    images = conversation.images()
    request = ChatRequest(
        told,
        chat.field(body, "model", str),
        conversation.messages,
        bool(chat.field(body, "stream", bool)),
        max_tokens,
        1,
        tuple(image for image, _ in images),
        tuple(conversation.files),
    )
    return Messages(request, tuple(source for _, source in images))


@dataclass(slots=True)
class _Turn:
    """What the blocks of one message become."""

    parts: list[Json] = field(default_factory=list)
    calls: list[Json] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Conversation:
    messages: list[Json] = field(default_factory=list)
    files: list[FilePart] = field(default_factory=list)
    _found: dict[int, tuple[str, Json]] = field(default_factory=dict)  # id of a part: its place, its source

    def read(self, system: object, given: Sequence[object]) -> None:
        texts = _system(system, "system", strips_text=False)
        for index, message in enumerate(given):
            where = f"messages[{index}]"
            if not isinstance(message, dict):
                raise ApiError("invalid_value", f"{where}: expected an object with a role and content", param=where)
            if message.get("role") == "system":
                texts += _system(message.get("content"), f"{where}.content", strips_text=True)
        if texts:
            self.messages.append({"role": "system", "content": "".join(texts)})
        for index, message in enumerate(given):
            assert isinstance(message, dict)
            if message.get("role") != "system":
                self._message(message, f"messages[{index}]")

    def images(self) -> list[tuple[ImagePart, Json]]:
        """In the order of the prompt."""
        found = []
        for message in self.messages:
            content = message.get("content")
            for part in content if isinstance(content, list) else []:
                if place := self._found.get(id(part)):
                    where, source = place
                    found.append((ImagePart(where, part["image_url"], "url", part), source))
        return found

    def _message(self, message: Json, where: str) -> None:
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant"):
            what = f"{where}.role: {chat.short(role)} is not supported; expected user, assistant or system"
            raise ApiError("invalid_value", what, param=f"{where}.role")
        if isinstance(content, str):
            self.messages.append({"role": role, "content": content})
            return
        turn = _Turn()
        blocks = _blocks(content, f"{where}.content")
        for number, block in enumerate(blocks):
            place = f"{where}.content[{number}]"
            if block.get("type") == "document":
                self.files.append(files.of_document(block, blocks, place))
            else:
                self._block(block, role, turn, place)
        if role == "user" and not turn.parts:
            return
        told: Json = {"role": role}
        if turn.parts:
            told["content"] = turn.parts
        if turn.calls:
            told["tool_calls"] = turn.calls
        if turn.thoughts:
            told["reasoning"] = "".join(turn.thoughts)
        self.messages.append(told)

    def _block(self, block: Json, role: str, turn: _Turn, where: str) -> None:
        match block.get("type"):
            case "text":
                if text := _text(block, "text", where):
                    turn.parts.append({"type": "text", "text": text})
            case "image":
                turn.parts.append(self._image(block, where))
            case "thinking":
                turn.thoughts.append(_text(block, "thinking", where))
            case "tool_use":
                turn.calls.append(_call(block, where))
            case "tool_result" if role == "user":
                self._result(block, where)
            case "tool_result":
                result = block.get("content")
                turn.parts.append({"type": "text", "text": f"Tool result: {result if result else ''}"})
            case kind if kind not in _SILENT:
                what = f"{where}.type: {chat.short(kind)} is not supported in a message of role {role!r:.40}"
                raise ApiError("invalid_value", what, param=f"{where}.type")

    def _result(self, block: Json, where: str) -> None:
        content = block.get("content")
        texts, pictures = [], []
        if isinstance(content, str):
            texts = [content]
        elif content is not None:
            items = _blocks(content, f"{where}.content")
            for number, item in enumerate(items):
                place = f"{where}.content[{number}]"
                match item.get("type"):
                    case "document":
                        self.files.append(files.of_document(item, items, place))
                    case "text":
                        texts.append(_text(item, "text", place))
                    case "image":
                        pictures.append(self._image(item, place))
                    case kind:
                        what = f"{place}.type: {chat.short(kind)} is not supported; expected text, image or document"
                        raise ApiError("invalid_value", what, param=f"{place}.type")
        self.messages.append({"role": "tool", "content": "\n".join(texts)})
        if pictures:
            self.messages.append({"role": "user", "content": pictures})

    def _image(self, block: Json, where: str) -> Json:
        source = block.get("source")
        if not isinstance(source, dict):
            what = f"{where}.source: {kind_of(source)} is not supported; expected an object"
            raise ApiError("invalid_value", what, param=f"{where}.source")
        _check_source(source, f"{where}.source")
        part: Json = {"type": "image_url", "image_url": {"url": _url(source)}}
        self._found[id(part)] = where, source
        return part


def _check_source(source: Json, where: str) -> None:
    kind = source.get("type", "base64")
    if kind not in ("base64", "url"):
        what = f"{where}.type: {chat.short(kind)} is not supported; expected base64 or url: the server keeps no files"
        raise ApiError("invalid_value", what, param=f"{where}.type")
    name = "url" if kind == "url" else "data"
    if not isinstance(source.get(name), str) or not source[name]:
        what = f"{where}.{name}: {chat.short(source.get(name))} is not supported; expected a string"
        raise ApiError("invalid_value", what, param=f"{where}.{name}")
    media_type = source.get("media_type", "image/jpeg")
    if kind == "base64" and not (isinstance(media_type, str) and _MEDIA_TYPE.fullmatch(media_type)):
        what = f"{where}.media_type: {chat.short(media_type)} is not supported; expected one such as image/png"
        raise ApiError("invalid_value", what, param=f"{where}.media_type")


def _url(source: Json) -> str:
    if source.get("type") == "url":
        url: str = source["url"]
        return url
    return f"data:{source.get('media_type', 'image/jpeg')};base64,{source['data']}"


def _system(content: object, where: str, *, strips_text: bool) -> list[str]:
    """The texts of the system field or of a system's message. Blocks with the billing header are left out.

    Of the field given as text the header's line goes later, with every chat's.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [content] if content and not (strips_text and content.startswith(BILLING)) else []
    texts = []
    for number, block in enumerate(_blocks(content, where)):
        if block.get("type") != "text":
            what = f"{where}[{number}].type: {chat.short(block.get('type'))} is not supported; expected text"
            raise ApiError("invalid_value", what, param=f"{where}[{number}].type")
        text = _text(block, "text", f"{where}[{number}]")
        if text and not text.startswith(BILLING):
            texts.append(text)
    return texts


def _blocks(content: object, where: str) -> list[Json]:
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise ApiError("invalid_value", f"{where}: expected text or a list of blocks", param=where)
    return content


def _text(block: Json, name: str, where: str) -> str:
    text = block.get(name)
    if not isinstance(text, str):
        what = f"{where}.{name}: {chat.short(text)} is not supported; expected a string"
        raise ApiError("invalid_value", what, param=f"{where}.{name}")
    return text


def _call(block: Json, where: str) -> Json:
    given = block.get("input")
    if given is not None and not isinstance(given, dict):
        what = f"{where}.input: {kind_of(given)} is not supported; expected an object"
        raise ApiError("invalid_value", what, param=f"{where}.input")
    return {"type": "function", "function": {"name": block.get("name") or "", "arguments": given or {}}}


def _tools(given: object) -> list[Json]:
    if not isinstance(given, list):
        raise ApiError("invalid_value", "tools: expected a list of tools", param="tools")
    return [_tool(tool, f"tools[{number}]") for number, tool in enumerate(given)]


def _tool(tool: object, where: str) -> Json:
    if not isinstance(tool, dict) or not isinstance(tool.get("input_schema"), dict):
        what = f"{where}: expected a name and an input_schema; the server has no tools of its own"
        raise ApiError("invalid_value", what, param=where)
    function = {name: tool.get(name) for name in ("name", "description", "strict", "defer_loading")}
    schema = tool["input_schema"]
    parameters = schema if "type" in schema else {**schema, "type": "object"}
    return {"type": "function", "function": {**function, "parameters": parameters}}
