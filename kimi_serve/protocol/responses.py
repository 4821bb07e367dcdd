"""OpenAI's Responses as an equal chat request, for counting. Knows both shapes; what is forwarded is the original.

The conversation is the one that vLLM 0.32 makes of the same body: a call, a thought and a text of the assistant that
follow each other are one message, and of an assistant's text in several parts only the first is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from kimi_serve.protocol import chat, files
from kimi_serve.protocol.chat import ChatRequest, ImagePart, Json
from kimi_serve.protocol.errors import ApiError
from kimi_serve.protocol.files import FilePart
from kimi_serve.protocol.settled import TEXT_PARTS

STATE: Final = ("previous_response_id", "previous_input_messages", "conversation", "prompt", "background", "store")
_UNFINISHED: Final = ("in_progress", "incomplete")
_CUSTOM_TOOL: Final = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The freeform text payload for this tool."}},
    "required": ["input"],
    "additionalProperties": False,
}


def parse(body: Json) -> ChatRequest:
    for name in STATE:
        if body.get(name) not in (None, False):
            what = f"{name}: is not supported, since the server keeps no state; send the whole conversation as input"
            raise ApiError("invalid_value", what, param=name)
    conversation = _Conversation()
    if instructions := chat.field(body, "instructions", str):
        conversation.messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    if isinstance(given, str):
        conversation.messages.append({"role": "user", "content": given})
    elif isinstance(given, list) and given:
        conversation.read(given)
    else:
        raise ApiError("invalid_value", "input: expected text or a list with at least one item", param="input")
    told: Json = {"messages": conversation.messages, "tools": list(_tools(body.get("tools")))}
    if isinstance(given, list) and _is_to_be_continued(given[-1]):
        told |= {"continue_final_message": True, "add_generation_prompt": False}
    if (options := chat.field(body, "chat_template_kwargs", dict)) is not None:
        told["chat_template_kwargs"] = options
    return ChatRequest(
        told,
        chat.field(body, "model", str),
        conversation.messages,
        bool(chat.field(body, "stream", bool)),
        chat.field(body, "max_output_tokens", int, at_least=1),
        1,
        tuple(conversation.images()),
        tuple(conversation.files),
    )


@dataclass(slots=True)
class _Conversation:
    messages: list[Json] = field(default_factory=list)
    files: list[FilePart] = field(default_factory=list)
    _begins: int = 0  # the first message that came from the input: instructions are never added to
    _found: dict[int, str] = field(default_factory=dict)  # id of a part: its place

    def read(self, items: Sequence[object]) -> None:
        self._begins = len(self.messages)
        for index, item in enumerate(items):
            where = f"input[{index}]"
            if not isinstance(item, dict):
                raise ApiError("invalid_value", f"{where}: expected an object", param=where)
            self._item(item, where)

    def images(self) -> Iterator[ImagePart]:
        for message in self.messages:
            content = message.get("content")
            for part in content if isinstance(content, list) else []:
                if where := self._found.get(id(part)):
                    yield ImagePart(where, part, "image_url", part)

    def _item(self, item: Json, where: str) -> None:
        match item.get("type", "message"):
            case "message":
                self._message(item, where)
            case "function_call":
                name, space = _text(item, "name", where), item.get("namespace")
                self._call(f"{space}__{name}" if space else name, _text(item, "arguments", where))
            case "custom_tool_call":
                self._call(_text(item, "name", where), {"input": _text(item, "input", where)})
            case "function_call_output" | "custom_tool_call_output":
                output = item.get("output")
                told = output if isinstance(output, str) else self._parts(output, f"{where}.output")
                self.messages.append({"role": "tool", "content": told})
            case "reasoning":
                self._add("reasoning", _reasoning(item, where))
            case "item_reference":
                what = f"{where}: an item_reference is not supported, since the server keeps no state; send the item"
                raise ApiError("invalid_value", what, param=where)
            case kind:
                what = f"{where}.type: {chat.short(kind)} is not supported"
                raise ApiError("invalid_value", what, param=f"{where}.type")

    def _message(self, item: Json, where: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role == "assistant":
            self._add("content", content if isinstance(content, str) else _first_text(content, f"{where}.content"))
            return
        if role not in ("user", "system", "developer"):
            what = f"{where}.role: {chat.short(role)} is not supported; expected user, assistant, system or developer"
            raise ApiError("invalid_value", what, param=f"{where}.role")
        told = content if isinstance(content, str) else self._parts(content, f"{where}.content")
        self.messages.append({"role": role, "content": told})

    def _last_assistant(self) -> Json | None:
        ours = self.messages[self._begins :]
        return ours[-1] if ours and ours[-1]["role"] == "assistant" else None

    def _add(self, name: str, text: str) -> None:
        """To the assistant's message before it, where that has none of the kind yet."""
        last = self._last_assistant()
        if last is not None and last.get(name) is None:
            last[name] = text
        else:
            self.messages.append({"role": "assistant", name: text})

    def _call(self, name: str, arguments: object) -> None:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        last = self._last_assistant()
        if last is None:
            self.messages.append({"role": "assistant", "tool_calls": [call]})
        else:
            last.setdefault("tool_calls", []).append(call)

    def _parts(self, content: object, where: str) -> list[Json]:
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise ApiError("invalid_value", f"{where}: expected text or a list of parts", param=where)
        for number, part in enumerate(content):
            place = f"{where}[{number}]"
            if part.get("type") == "input_file":
                self.files.append(files.of_input_file(part, content, place))
            else:
                self._part(part, place)
        return content

    def _part(self, part: Json, where: str) -> None:
        kind = part.get("type")
        if kind in TEXT_PARTS:
            _text(part, "text", where)
        elif kind == "input_image":
            if not isinstance(part.get("image_url"), str) or not part["image_url"]:
                what = f"{where}.image_url: expected a URL or a data URL; the server keeps no files"
                raise ApiError("invalid_value", what, param=f"{where}.image_url")
            self._found[id(part)] = where
        else:
            what = f"{where}.type: {chat.short(kind)} is not supported; expected input_text or input_image"
            raise ApiError("invalid_value", what, param=f"{where}.type")


def _text(item: Json, name: str, where: str) -> str:
    text = item.get(name)
    if not isinstance(text, str):
        what = f"{where}.{name}: {chat.short(text)} is not supported; expected a string"
        raise ApiError("invalid_value", what, param=f"{where}.{name}")
    return text


def _first_text(content: object, where: str) -> str:
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        raise ApiError("invalid_value", f"{where}: expected text or a list with a part of text", param=where)
    return _text(content[0], "text", f"{where}[0]")


def _reasoning(item: Json, where: str) -> str:
    if item.get("encrypted_content"):
        what = f"{where}.encrypted_content: is not supported, since the server keeps no keys; leave it out"
        raise ApiError("invalid_value", what, param=f"{where}.encrypted_content")
    for name in ("content", "summary"):
        if item.get(name):
            return _first_text(item[name], f"{where}.{name}")
    return ""


def _is_to_be_continued(item: Json) -> bool:
    """As vLLM reads it: a status counts only on what the assistant is known to have written."""
    if item.get("status") not in _UNFINISHED:
        return False
    kind, content = item.get("type", "message"), item.get("content")
    if kind == "reasoning":
        return True
    if kind != "message" or not isinstance(content, list):
        return False
    if item.get("role") == "assistant":
        return "type" in item and all(part.get("type") == "output_text" for part in content)
    return True  # the template refuses to continue what is not the assistant's


def _tools(given: object) -> Iterator[Json]:
    """The functions that a model is shown; tools that a server would run itself are not."""
    if given is None:
        return
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise ApiError("invalid_value", "tools: expected a list of tools", param="tools")
    for number, tool in enumerate(given):
        where = f"tools[{number}]"
        match tool.get("type"):
            case "function":
                yield _function(tool, _text(tool, "name", where))
            case "custom":
                shown = {"description": tool.get("description"), "parameters": _CUSTOM_TOOL}
                yield _function(shown, _text(tool, "name", where))
            case "namespace":
                space = _text(tool, "name", where)
                for one in tool.get("tools") or []:
                    if isinstance(one, dict) and one.get("type") == "function":
                        yield _function(one, f"{space}__{_text(one, 'name', where)}")


def _function(tool: Json, name: str) -> Json:
    told = {key: tool.get(key) for key in ("description", "parameters", "strict", "defer_loading")}
    return {"type": "function", "function": {**told, "name": name}}
