"""From a conversation to token ids. Knows roles and control tokens; never a pixel, a model or a request's settings.

Control tokens are made by id and everything that a caller wrote is encoded as plain text, so no message, name or tool
result can end a turn, open one or add an image. A turn is: role token, role name, <|im_middle|>, content, <|im_end|>.
Nothing separates turns, nothing is trimmed, there is no BOS; a conversation that does not begin with a system message
gets DEFAULT_SYSTEM. This is the published template. What it does not cover is ours:

* `developer` is another name for `system`.
* Thoughts of past assistant turns, up to and including the last ◁/think▷, are left out unless `keep_thoughts`.
  With it, `reasoning_content` (or `reasoning`) is put back between the markers.
* `tools`: one more system turn after the first holds TOOLS_INTRODUCTION and each function's JSON on its own line.
  An assistant's `tool_calls` follow its content as JSON, one call a line; a tool's result is a system-side turn
  with the role name `tool`. The checkpoints were not trained on any tool format.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kimi_serve.errors import ChatError
from kimi_serve.inputs.thoughts import CLOSE, OPEN
from kimi_serve.inputs.tokenizer import Tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant"
TOOLS_INTRODUCTION = (
    "You can call the functions below, each described by one line of JSON. To call functions, answer with one line of "
    'JSON per call and nothing else: {"name": <function name>, "arguments": <object>}\n'
)

IMAGE_PARTS = ("image", "image_url", "input_image")
TEXT_PARTS = ("text", "input_text", "output_text")

_ROLE_TOKENS = {
    "system": "<|im_system|>",
    "user": "<|im_user|>",
    "assistant": "<|im_assistant|>",
    "tool": "<|im_system|>",
}
_ROLES = (*_ROLE_TOKENS, "developer")


_MIDDLE = "<|im_middle|>"
_END = "<|im_end|>"
# The second is text, the others are tokens.
_MEDIA = ("<|media_start|>", "image", "<|media_content|>", "<|media_pad|>", "<|media_end|>")


@dataclass(frozen=True, slots=True)
class _Image:
    """An image among a message's content."""


Item = str | _Image


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    content: Sequence[Item]
    is_open: bool = False


Message = Mapping[str, object]
Tools = Sequence[Mapping[str, object]]


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    keep_thoughts: bool = False,
    tools: Tools | None = None,
) -> list[int]:
    """Token ids of a conversation, with one <|media_pad|> per image.

    `continue_final_message` leaves the last turn open, which must be the assistant's and keeps its thoughts;
    `add_generation_prompt` then does nothing.
    """
    ids: list[int] = []
    for turn in _conversation(messages, add_generation_prompt, continue_final_message, keep_thoughts, tools):
        ids.append(tokenizer.special_id(_ROLE_TOKENS[turn.role]))
        ids += tokenizer.encode_known(turn.role)
        ids.append(tokenizer.special_id(_MIDDLE))
        for item in _join(turn.content):
            if isinstance(item, _Image):
                ids += _image_ids(tokenizer)
            else:
                ids += tokenizer.encode_known(item) if item == DEFAULT_SYSTEM else tokenizer.encode(item)
        if not turn.is_open:
            ids.append(tokenizer.special_id(_END))
    return ids


def _image_ids(tokenizer: Tokenizer) -> list[int]:
    start, name, *rest = _MEDIA
    return [tokenizer.special_id(start), *tokenizer.encode_known(name), *map(tokenizer.special_id, rest)]


def render_text(
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    keep_thoughts: bool = False,
    tools: Tools | None = None,
) -> str:
    """What `render` encodes, for showing. Do not encode it: control tokens and text look alike here."""
    text = ""
    for turn in _conversation(messages, add_generation_prompt, continue_final_message, keep_thoughts, tools):
        content = ("".join(_MEDIA) if isinstance(item, _Image) else item for item in turn.content)
        text += "".join((_ROLE_TOKENS[turn.role], turn.role, _MIDDLE, *content, "" if turn.is_open else _END))
    return text


def count_images(messages: Sequence[Message]) -> int:
    """Count the images of a conversation: as many as `render` makes placeholders."""
    contents = (_content(message, index) for index, message in enumerate(messages))
    return sum(isinstance(item, _Image) for items in contents for item in items)


def _conversation(
    messages: Sequence[Message],
    add_generation_prompt: bool,
    continue_final: bool,
    keep_thoughts: bool,
    tools: Tools | None,
) -> Iterator[_Turn]:
    if not messages:
        raise ChatError("messages: is empty; expected at least one message")
    last = len(messages) - 1
    if continue_final and _role(messages[last], last) != "assistant":
        raise ChatError(f"messages[{last}].role: continue_final_message needs 'assistant' as the last message")
    has_system = _role(messages[0], 0) == "system"
    if not has_system:
        yield _Turn("system", [DEFAULT_SYSTEM])
        yield from _tools_turn(tools)
    for index, message in enumerate(messages):
        is_open = continue_final and index == last
        yield _Turn(_role(message, index), _message(message, index, keep_thoughts or is_open), is_open)
        if has_system and index == 0:
            yield from _tools_turn(tools)
    if add_generation_prompt and not continue_final:
        yield _Turn("assistant", [], is_open=True)


def _role(message: Message, index: int) -> str:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ChatError(f"messages[{index}].role: {role!r:.40} is not supported; supported: {', '.join(_ROLES)}")
    return "system" if role == "developer" else role


def _message(message: Message, index: int, keep_thoughts: bool) -> list[Item]:
    items = _content(message, index)
    if message["role"] == "assistant":
        items = [_reasoning(message, index), *items] if keep_thoughts else _without_thoughts(items)
        calls = _tool_calls(message, index)
        items += ["\n", *calls] if calls and any(items) else calls
    return items


def _content(message: Message, index: int) -> list[Item]:
    content = message.get("content")
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, (list, tuple)):
        kind = type(content).__name__
        raise ChatError(f"messages[{index}].content: {kind} is not supported; supported: a string or a list of parts")
    return [_part(part, f"messages[{index}].content[{number}]") for number, part in enumerate(content)]


def _part(part: object, where: str) -> Item:
    if not isinstance(part, Mapping):
        raise ChatError(f"{where}: {type(part).__name__} is not supported; expected an object with a type")
    kind = part.get("type")
    if kind in IMAGE_PARTS or (kind is None and any(key in part for key in IMAGE_PARTS)):
        return _Image()
    if kind in TEXT_PARTS or (kind is None and "text" in part):
        text = part.get("text")
        if not isinstance(text, str):
            raise ChatError(f"{where}.text: {type(text).__name__} is not supported; expected a string")
        return text
    supported = ", ".join((*TEXT_PARTS, *IMAGE_PARTS))
    raise ChatError(f"{where}.type: {kind!r:.40} is not supported; supported: {supported}")


def _without_thoughts(items: list[Item]) -> list[Item]:
    """Drop text up to and including the last CLOSE, which may span parts; images stay, as they are counted."""
    text = "".join(item for item in items if isinstance(item, str))
    dropped = text.rfind(CLOSE) + len(CLOSE) if CLOSE in text else 0
    kept: list[Item] = []
    for item in items:
        if isinstance(item, str):
            item, dropped = item[dropped:], max(0, dropped - len(item))
        kept.append(item)
    return kept


def _reasoning(message: Message, index: int) -> str:
    for key in ("reasoning_content", "reasoning"):
        reasoning = message.get(key)
        if reasoning is not None and not isinstance(reasoning, str):
            raise ChatError(f"messages[{index}].{key}: {type(reasoning).__name__} is not supported; expected a string")
        if reasoning:
            return f"{OPEN}{reasoning}{CLOSE}"
    return ""


def _tool_calls(message: Message, index: int) -> list[str]:
    """Write past calls as one line of JSON each."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, (list, tuple)):
        raise ChatError(f"messages[{index}].tool_calls: {type(calls).__name__} is not supported; expected a list")
    lines = []
    for number, call in enumerate(calls):
        where = f"messages[{index}].tool_calls[{number}]"
        function = _function(call, where)
        call_object = {"name": function["name"], "arguments": _arguments(function.get("arguments"))}
        lines.append(_json(call_object, where))
    return ["\n".join(lines)] if lines else []


def _arguments(arguments: object) -> object:
    """Return the object that OpenAI's clients send as a string of JSON; a string that is none stays a string."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _tools_turn(tools: Tools | None) -> Iterator[_Turn]:
    if not tools:
        return
    lines = [_json(_function(tool, f"tools[{number}]"), f"tools[{number}]") for number, tool in enumerate(tools)]
    yield _Turn("system", [TOOLS_INTRODUCTION + "\n".join(lines)])


def _function(holder: object, where: str) -> Mapping[str, object]:
    function = holder.get("function") if isinstance(holder, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ChatError(f"{where}.function: expected an object with a name")
    return function


def _json(value: object, where: str) -> str:
    try:
        return json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatError(f"{where}: cannot be written as JSON: {error}") from error


def _join(items: Sequence[Item]) -> Iterator[Item]:
    """Join neighbouring text: byte pairs merge across the parts of a message."""
    text = ""
    for item in items:
        if isinstance(item, str):
            text += item
            continue
        if text:
            yield text
        text = ""
        yield item
    if text:
        yield text
