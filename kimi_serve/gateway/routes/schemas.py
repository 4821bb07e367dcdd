"""JSON schemas of what clients send and get. Knows names and shapes; validates nothing: protocol/ does.

Of a request they name what the gateway itself looks at, so that what breaks a schema is refused here; every other
field is the engine's, which knows more of them than a document that is written beside it.
"""

from __future__ import annotations

from typing import Any, Final

from kimi_serve.gateway.batches.records import ENDPOINTS
from kimi_serve.gateway.files.records import EXPIRES_S, PURPOSES, UPLOADED
from kimi_serve.gateway.fitting.plan import FITS
from kimi_serve.protocol.errors import CODES

Schema = dict[str, Any]

_RED: Final = (  # a picture of 28x28 pixels
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAIAAAD9b0jDAAAAJ0lEQVR4nGM8ISfHQG3ARHUTRw0dNXTU0FFDRw0dNXTU0FFD"
    "B6WhAH4EATw6hVmXAAAAAElFTkSuQmCC"
)


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None, **more: object) -> Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), **more}


def _list_of(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def _constant(value: str) -> Schema:
    return {"type": "string", "enum": [value]}


STRING: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
ANY: Final[Schema] = {"type": "object"}
_LIMIT: Final = _nullable({"type": "integer", "minimum": 1})
_SHARED: Final[dict[str, Schema]] = {
    "model": _nullable({**STRING, "description": "one of GET /v1/models; without it the only one that is served"}),
    "stream": _nullable({"type": "boolean", "description": "whether the answer comes as server-sent events"}),
    "chat_template_kwargs": _nullable(ANY),
}
_FIT: Final[Schema] = _nullable(
    {
        **STRING,
        "enum": list(FITS),
        "description": "what happens to images where the prompt does not fit: error refuses, downscale makes all of "
        "them smaller, elide_oldest puts a text in the place of the oldest of the history",
    }
)
_PART: Final[Schema] = {
    **ANY,
    "description": "by its type: text with `text`; image_url with `image_url.url`, an http, https or data URL, and "
    "`image_url.detail`, one of low, high and auto; "
    "file with `file.file_data`, a data URL of a picture or a PDF, or `file.file_id`; of a PDF "
    "`pages` and `text` may be chosen; video_url with `video_url.url`, `fps` or `frames`, and `sampling`; "
    "`file_id` may stand for every `url`",
}
_CONTENT: Final[Schema] = {"anyOf": [STRING, _list_of(_PART), {"type": "null"}]}
_ROLES: Final = ["system", "developer", "user", "assistant", "tool"]
_MESSAGE: Final = _object({"role": {**STRING, "enum": _ROLES}}, {"content": _CONTENT})
_TEXT: Final[Schema] = {"type": "text", "text": "What is this?"}
_PICTURE: Final[Schema] = {"type": "image_url", "image_url": {"url": _RED}}
_HELLO: Final[list[Schema]] = [{"role": "user", "content": "Hello"}]

CHAT: Final = _object(
    {"messages": _list_of(_MESSAGE, 1)},
    {
        **_SHARED,
        "fit": _FIT,
        "max_tokens": _LIMIT,
        "max_completion_tokens": _LIMIT,
        "n": _LIMIT,
        "tools": _nullable(_list_of(ANY)),
    },
    examples=[
        {"messages": _HELLO, "max_tokens": 8},
        {"messages": [{"role": "user", "content": [_TEXT, _PICTURE]}], "stream": True},
    ],
)
COMPLETION: Final = _object(
    {
        "prompt": {
            "anyOf": [
                {**STRING, "minLength": 1},
                _list_of(STRING, 1),
                _list_of(COUNT, 1),
                _list_of(_list_of(COUNT, 1), 1),
            ]
        }
    },
    {"model": _SHARED["model"], "stream": _SHARED["stream"], "max_tokens": _LIMIT, "n": _LIMIT},
    examples=[{"prompt": "Once upon a time", "max_tokens": 8}],
)
_BLOCK: Final[Schema] = {
    **ANY,
    "description": "by its type: text; image with a base64 or url source; document with a picture or a PDF; "
    "tool_use, tool_result, thinking",
}
_TURN: Final = _object(
    {
        "role": {**STRING, "enum": ["user", "assistant", "system"]},
        "content": {"anyOf": [STRING, _list_of(_BLOCK)]},
    }
)
_MESSAGES_FIELDS: Final[dict[str, Schema]] = {
    **_SHARED,
    "fit": _FIT,
    "system": {"anyOf": [STRING, _list_of(_object({"type": _constant("text"), "text": STRING})), {"type": "null"}]},
    "tools": _nullable(_list_of(_object({"input_schema": ANY}))),
}
MESSAGES: Final = _object(
    {"messages": _list_of(_TURN, 1), "max_tokens": {"type": "integer", "minimum": 1}},
    _MESSAGES_FIELDS,
    examples=[{"messages": _HELLO, "max_tokens": 8}, {"messages": _HELLO, "max_tokens": 8, "stream": True}],
)
MESSAGES_COUNT: Final = _object(
    {"messages": _list_of(_TURN, 1)}, {**_MESSAGES_FIELDS, "max_tokens": _LIMIT}, examples=[{"messages": _HELLO}]
)
_INPUT: Final[dict[str, Schema]] = {"input": {"anyOf": [STRING, _list_of(ANY, 1)]}}
_RESPONSES_FIELDS: Final[dict[str, Schema]] = {
    **_SHARED,
    "fit": _FIT,
    "instructions": _nullable(STRING),
    "max_output_tokens": _LIMIT,
    "tools": _nullable(_list_of(ANY)),
}
RESPONSES: Final = _object(
    _INPUT,
    _RESPONSES_FIELDS,
    examples=[{"input": "Hello", "max_output_tokens": 8}, {"input": "Hello", "stream": True}],
)
RESPONSES_COUNT: Final = _object(_INPUT, _RESPONSES_FIELDS, examples=[{"input": "Hello"}])
TOKENIZE: Final[Schema] = {
    "anyOf": [
        _object({"prompt": STRING}, {"model": _SHARED["model"]}, examples=[{"prompt": "Hello"}]),
        _object(
            {"messages": _list_of(_MESSAGE, 1)},
            {"model": _SHARED["model"], "fit": _FIT, "max_tokens": _LIMIT},
            examples=[{"messages": _HELLO}],
        ),
    ]
}

_PER_IMAGE: Final = _object({"before": _nullable(COUNT), "after": _nullable(COUNT)})
_FITTED: Final = (
    _object(  # where images were changed, or `fit` is set; of a stream it is in a header, without each image
        {
            "fit": {**STRING, "enum": list(FITS)},
            "prompt_tokens_before": _nullable(COUNT),
            "prompt_tokens": COUNT,
            "images": COUNT,
            "images_scaled": COUNT,
            "images_left_out": COUNT,
            "factor": {"type": "number", "minimum": 0, "maximum": 1},
            "image_tokens": _list_of(_PER_IMAGE),
        }
    )
)
_ALSO: Final[dict[str, Schema]] = {"kimi_serve": _FITTED}
_USAGE: Final = _object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT})
_INPUT_OUTPUT: Final = _object({"input_tokens": COUNT, "output_tokens": COUNT})
_REASON: Final = _nullable({**STRING, "description": "stop, length or tool_calls"})


def _choices(fields: dict[str, Schema]) -> Schema:
    return _list_of(_object({"index": COUNT, **fields, "finish_reason": _REASON}))


def _completion(kind: str, choices: Schema, also: dict[str, Schema] | None = None) -> Schema:
    return _object(
        {
            "id": STRING,
            "object": _constant(kind),
            "created": COUNT,
            "model": STRING,
            "choices": choices,
            "usage": _USAGE,
        },
        also,
    )


CHAT_ANSWER: Final = _completion(
    "chat.completion",
    _choices(
        {
            "message": _object(
                {"role": _constant("assistant"), "content": _nullable(STRING)},
                {"reasoning_content": _nullable(STRING), "tool_calls": _nullable(_list_of(ANY))},
            )
        }
    ),
    _ALSO,
)
COMPLETION_ANSWER: Final = _completion("text_completion", _choices({"text": STRING}))
MESSAGES_ANSWER: Final = _object(
    {
        "id": STRING,
        "type": _constant("message"),
        "role": _constant("assistant"),
        "model": STRING,
        "content": _list_of(_object({"type": STRING})),
        "stop_reason": _nullable(STRING),
        "usage": _INPUT_OUTPUT,
    },
    _ALSO,
)
RESPONSES_ANSWER: Final = _object(
    {
        "id": STRING,
        "object": _constant("response"),
        "created_at": COUNT,
        "model": STRING,
        "status": STRING,
        "output": _list_of(_object({"type": STRING})),
        "usage": _nullable(_INPUT_OUTPUT),
    },
    _ALSO,
)
TOKENS: Final = _object(
    {"count": COUNT, "max_model_len": COUNT, "tokens": _list_of(COUNT), "image_tokens": _list_of(COUNT)}, _ALSO
)
INPUT_TOKENS: Final = _object({"input_tokens": COUNT}, _ALSO)
RESPONSES_TOKENS: Final = _object({"object": _constant("response.input_tokens"), "input_tokens": COUNT}, _ALSO)
MODELS: Final = _object(
    {
        "object": _constant("list"),
        "data": _list_of(
            _object({"id": STRING, "object": _constant("model"), "created": COUNT, "owned_by": STRING}),
        ),
    }
)
READINESS: Final = _object({"status": STRING, "engines": {"type": "object", "additionalProperties": STRING}})
LIVENESS: Final = _object({"status": _constant("alive")})
EVENT: Final = _object({"data": STRING}, {"event": STRING})  # one of a stream
ERROR: Final = _object(
    {
        "error": _object(
            {
                "message": STRING,
                "type": STRING,
                "param": _nullable(STRING),
                "code": {
                    "anyOf": [
                        {**STRING, "enum": sorted(CODES)},
                        {"type": "integer", "description": "its status, where the engine itself refused"},
                        {"type": "null"},
                    ]
                },
            }
        )
    }
)
ANTHROPIC_ERROR: Final = _object(
    {"type": _constant("error"), "error": _object({"type": STRING, "message": STRING})},
)

_TIME: Final = _nullable(COUNT)
_SECONDS: Final[Schema] = {"type": "integer", "minimum": EXPIRES_S[0], "maximum": EXPIRES_S[1]}
_LIFETIME: Final = _object({"anchor": _constant("created_at"), "seconds": _SECONDS})

UPLOAD: Final = _object(
    {"file": {"type": "string", "format": "binary"}, "purpose": {**STRING, "enum": list(UPLOADED)}},
    {"expires_after[anchor]": _constant("created_at"), "expires_after[seconds]": _SECONDS},
)
FILE: Final = _object(
    {
        "id": STRING,
        "object": _constant("file"),
        "bytes": COUNT,
        "created_at": COUNT,
        "expires_at": _TIME,
        "filename": STRING,
        "purpose": {**STRING, "enum": list(PURPOSES)},
        "status": _constant("processed"),
    }
)
FILES: Final = _object({"object": _constant("list"), "data": _list_of(FILE), "has_more": {"type": "boolean"}})
DELETED: Final = _object({"id": STRING, "object": _constant("file"), "deleted": {"type": "boolean"}})

ORDER: Final = _object(
    {
        "input_file_id": {**STRING, "minLength": 1},
        "endpoint": {**STRING, "enum": list(ENDPOINTS)},
        "completion_window": {**STRING, "pattern": "^[1-9][0-9]{0,8}[smhd]$"},
    },
    {"metadata": _nullable({**ANY, "additionalProperties": STRING}), "output_expires_after": _nullable(_LIFETIME)},
    additionalProperties=False,
)
_PROBLEM: Final = _object({"code": STRING, "message": STRING, "param": _nullable(STRING), "line": _nullable(COUNT)})
_TIMES: Final = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
BATCH: Final = _object(
    {
        "id": STRING,
        "object": _constant("batch"),
        "endpoint": {**STRING, "enum": list(ENDPOINTS)},
        "errors": _nullable(_object({"object": _constant("list"), "data": _list_of(_PROBLEM)})),
        "input_file_id": STRING,
        "completion_window": STRING,
        "status": {**STRING, "enum": ["validating", *_TIMES]},
        "output_file_id": _nullable(STRING),
        "error_file_id": _nullable(STRING),
        "created_at": COUNT,
        "expires_at": COUNT,
        **{f"{name}_at": _TIME for name in _TIMES},
        "request_counts": _object({"total": COUNT, "completed": COUNT, "failed": COUNT}),
        "usage": _object(
            {
                "input_tokens": COUNT,
                "input_tokens_details": _object({"cached_tokens": COUNT}),
                "output_tokens": COUNT,
                "output_tokens_details": _object({"reasoning_tokens": COUNT}),
                "total_tokens": COUNT,
            }
        ),
        "metadata": _nullable({**ANY, "additionalProperties": STRING}),
    }
)
BATCHES: Final = _object(
    {
        "object": _constant("list"),
        "data": _list_of(BATCH),
        "first_id": _nullable(STRING),
        "last_id": _nullable(STRING),
        "has_more": {"type": "boolean"},
    }
)


def names(parameter: str) -> dict[str, Any]:
    """A route with an id in its path."""
    return {"parameters": [{"name": parameter, "in": "path", "required": True, "schema": STRING}]}


def pages(most: int, **more: Schema) -> dict[str, Any]:
    """A route that gives a list in pages."""
    limit = {"type": "integer", "minimum": 1, "maximum": most}
    told = {"after": STRING, "limit": limit, **more}
    return {"parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in told.items()]}
