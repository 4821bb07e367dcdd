"""What vLLM 0.32 makes of a chat body before a template sees it. Knows what it drops, joins and orders; no token.

The count of a prompt is exact only if it is made of the same messages and tools:

* A system text that begins with Claude Code's billing header loses that line: its value differs in every request.
* A tool's result given as parts of text becomes one text, a line each.
* The arguments of past calls become an object; what is none, or no JSON, becomes an empty one.
* A tool's function keeps the fields that vLLM knows, in vLLM's order, with null for a missing description or schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

BILLING: Final = "x-anthropic-billing-header"
TEXT_PARTS: Final = ("text", "input_text", "output_text")
Json = dict[str, Any]


def messages(given: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    return [_message(one) if isinstance(one, Mapping) else one for one in given]


def tools(given: Sequence[object]) -> list[object]:
    return [_tool(tool) for tool in given]


def _message(message: Mapping[str, object]) -> Mapping[str, object]:
    role, content = message.get("role"), message.get("content")
    if role == "system":
        return {**message, "content": _without_billing(content)}
    if role == "tool" and isinstance(content, list) and all(_is_text(part) for part in content):
        return {**message, "content": "\n".join(part["text"] for part in content)}
    if role == "assistant" and isinstance(message.get("tool_calls"), list):
        calls = message["tool_calls"]
        assert isinstance(calls, list)
        return {**message, "tool_calls": [_call(call) for call in calls]}
    return message


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str)


def _without_billing(content: object) -> object:
    if isinstance(content, str):
        return content.partition("\n")[2] if content.startswith(BILLING) else content
    if not isinstance(content, list):
        return content
    kept = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "text" and str(part.get("text")).startswith(BILLING):
            kept.append({**part, "text": part["text"].partition("\n")[2]})
        else:
            kept.append(part)
    return kept


def _call(call: object) -> object:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, dict) else {}}}


def _tool(tool: object) -> object:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(function, dict) or "name" not in function:
        return tool  # an error, which the template names
    told: Json = {name: function.get(name) for name in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        told["strict"] = function["strict"]
    deferred = function["defer_loading"] if function.get("defer_loading") is not None else tool.get("defer_loading")
    if deferred is not None:
        told["defer_loading"] = deferred
    return {"type": "function", "function": told}
