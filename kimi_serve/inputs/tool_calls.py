"""Tool calls in an answer: lines of JSON, as chat's introduction of the tools asks for. Knows text; never a token."""

import json
from collections.abc import Set
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str  # JSON of an object


def may_be_calls(text: str) -> bool:
    """Whether an answer that begins like this can still turn out to be calls."""
    return text.lstrip()[:1] in ("", "{")


def parse_calls(text: str, names: Set[str]) -> list[ToolCall]:
    """The calls of an answer that holds nothing else; none where any line is not a call of a known function."""
    calls = [_call(line, names) for line in text.splitlines() if line.strip()]
    return [call for call in calls if call] if all(calls) else []


def _call(line: str, names: Set[str]) -> ToolCall | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in names:
        return None
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict) or set(value) - {"name", "arguments"}:
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))
