"""What OpenAPI says of the bodies. Knows JSON schema; validates nothing: protocol/ does."""

from __future__ import annotations

from typing import Any, Final

from kimi_serve.protocol.errors import CODES

_OPEN: Final = {"type": "object", "additionalProperties": True}
_MESSAGE: Final = {
    **_OPEN,
    "required": ["role"],
    "properties": {"role": {"type": "string"}, "content": {"anyOf": [{"type": "string"}, {"type": "array"}]}},
}
CHAT: Final[dict[str, Any]] = {
    **_OPEN,
    "required": ["messages"],
    "properties": {
        "model": {"type": "string"},
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "max_tokens": {"type": "integer", "minimum": 1},
        "stream": {"type": "boolean"},
        "n": {"type": "integer", "minimum": 1},
    },
}
COMPLETION: Final[dict[str, Any]] = {
    **_OPEN,
    "required": ["prompt"],
    "properties": {
        "model": {"type": "string"},
        "prompt": {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1}]},
        "max_tokens": {"type": "integer", "minimum": 1},
        "stream": {"type": "boolean"},
        "n": {"type": "integer", "minimum": 1},
    },
}
MESSAGES: Final[dict[str, Any]] = {
    **_OPEN,
    "required": ["messages"],
    "properties": {
        "model": {"type": "string"},
        "messages": CHAT["properties"]["messages"],
        "system": {"anyOf": [{"type": "string"}, {"type": "array"}]},
        "max_tokens": {"type": "integer", "minimum": 1},
        "stream": {"type": "boolean"},
    },
}
RESPONSES: Final[dict[str, Any]] = {
    **_OPEN,
    "required": ["input"],
    "properties": {
        "model": {"type": "string"},
        "input": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1}]},
        "instructions": {"type": "string"},
        "max_output_tokens": {"type": "integer", "minimum": 1},
        "stream": {"type": "boolean"},
    },
}
TOKENIZE: Final[dict[str, Any]] = {
    **_OPEN,
    "properties": {"model": {"type": "string"}, "messages": CHAT["properties"]["messages"], "prompt": {}},
}
ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "code": {"type": "string", "enum": sorted(CODES)},
            },
        }
    },
}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {
        "description": ", ".join(name for name, code in CODES.items() if code.status == status),
        "content": {"application/json": {"schema": ERROR}},
    }
    for status in sorted({code.status for code in CODES.values()})
}
ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    **ERRORS,
    200: {"description": "The engine's answer", "content": {"application/json": {}, "text/event-stream": {}}},
}


def takes(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
