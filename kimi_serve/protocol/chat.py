"""The fields of a chat request that the gateway decides on. Knows names and types of JSON; no token, no image size.

The rest of the body is the engine's business: it is neither checked nor changed, and where nothing has to be
rewritten the client's own bytes go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import msgspec

from kimi_serve.protocol import files
from kimi_serve.protocol.errors import ApiError
from kimi_serve.protocol.errors import short as short
from kimi_serve.protocol.files import FilePart

# Scheduling, caches and templates belong to the operator: a client who sets them can starve or read other tenants.
OWNED_FIELDS: Final = (
    "cache_salt",
    "chat_template",
    "ec_transfer_params",
    "kv_transfer_params",
    "media_io_kwargs",
    "mm_processor_kwargs",
    "priority",
    "request_id",
    "vllm_xargs",
)
IMAGE_KEYS: Final = ("image_url", "input_image", "image")
Detail = Literal["low", "high", "auto"]
_DETAILS: Final[dict[object, Detail]] = {
    None: "auto",
    "auto": "auto",
    "low": "low",
    "high": "high",
    "original": "high",  # OpenAI's word for a picture that is not scaled, which high never is by the gateway
}
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image of the conversation, by its place."""

    where: str  # messages[1].content[0]
    holder: Json  # the dict that holds the URL
    key: str  # under which it does
    part: Json

    @property
    def url(self) -> str:
        url: str = self.holder[self.key]
        return url

    @property
    def detail(self) -> Detail:
        """Raises ApiError."""
        given = self.holder.get("detail")
        if not (given is None or isinstance(given, str)) or given not in _DETAILS:
            where = f"{self.where}.detail" if self.holder is self.part else f"{self.where}.image_url.detail"
            what = f"{where}: {short(given)} is not supported; expected low, high, original or auto"
            raise ApiError("invalid_value", what, param=where)
        return _DETAILS[given]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    body: Json
    model: str | None
    messages: Sequence[Mapping[str, object]]
    stream: bool
    max_tokens: int | None
    n: int
    images: tuple[ImagePart, ...]
    files: tuple[FilePart, ...] = ()  # to be replaced by what they show, before anything is measured

    def places(self) -> dict[int, str]:
        """Where each image stands, by the id of what holds it in the client's body."""
        return {id(image.part): image.where for image in self.images}

    def placed(self, places: Mapping[int, str]) -> ChatRequest:
        """The same, its images named by the places that they had before files became images."""
        return replace(self, images=tuple(replace(one, where=places[id(one.part)]) for one in self.images))


def parse_object(raw: bytes) -> Json:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("invalid_json", f"the body is not JSON: {error}; send one JSON object") from error
    if not isinstance(body, dict):
        raise ApiError("invalid_json", f"the body is a JSON {type(body).__name__}; send one JSON object")
    return body


def parse_chat(body: Json, *, most_choices: int) -> ChatRequest:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError("invalid_value", "messages: expected a list with at least one message", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            where = f"messages[{index}]"
            raise ApiError("invalid_value", f"{where}: expected an object with a role and content", param=where)
    completion = field(body, "max_completion_tokens", int, at_least=1)
    return ChatRequest(
        body,
        field(body, "model", str),
        messages,
        bool(field(body, "stream", bool)),
        completion if completion is not None else field(body, "max_tokens", int, at_least=1),
        choices(body, most_choices),
        tuple(_images(messages)),
        tuple(_files(messages)),
    )


def choices(body: Json, most: int) -> int:
    """How many answers are to be made of one prompt."""
    n: int = field(body, "n", int, at_least=1) or 1
    if n > most:
        raise ApiError("invalid_value", f"n: {n} exceeds the limit of {most}", param="n")
    return n


def field(body: Json, name: str, kind: type, *, at_least: int | None = None) -> Any:
    """A field of the given JSON type; None where it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = {int: "an integer", str: "a string", bool: "true or false", dict: "an object"}[kind]
        raise ApiError("invalid_value", f"{name}: {short(value)} is not supported; expected {expected}", param=name)
    if at_least is not None and isinstance(value, int) and value < at_least:
        raise ApiError("invalid_value", f"{name}: {value} is too small; expected at least {at_least}", param=name)
    return value


def apply_policy(body: Json, policy: Literal["refuse", "strip"]) -> bool:
    """Deal with the fields that clients do not own; whether the body was changed."""
    owned = [name for name in OWNED_FIELDS if name in body]
    if owned and policy == "refuse":
        raise ApiError("field_not_allowed", f"{owned[0]}: clients may not set this field; leave it out", param=owned[0])
    for name in owned:
        del body[name]
    return bool(owned)


def strip_uuids(messages: object) -> bool:
    """A client's own media ids never reach an engine: its caches are keyed by them. Whether any was there.

    Of every part, whatever its type: beside a uuid vLLM reads any `image_url` as a picture. So does it of every item of
    Responses' input, whose parts lie under `output` too.
    """
    marked = [part for part in _parts(messages) if "uuid" in part]
    for part in marked:
        del part["uuid"]
    return bool(marked)


def _parts(messages: object) -> Iterator[Json]:
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            for content in (message.get("content"), message.get("output")):
                if isinstance(content, list):
                    yield from (part for part in content if isinstance(part, dict))


def encode(body: object) -> bytes:
    return msgspec.json.encode(body)


def _images(messages: Sequence[Json]) -> Iterator[ImagePart]:
    for index, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list):
            for number, part in enumerate(content):
                where = f"messages[{index}].content[{number}]"
                if isinstance(part, dict) and _holds_rows(part):
                    what = f"{where}: image_embeds cannot be counted before an engine reads them; send the picture"
                    raise ApiError("invalid_value", what, param=where)
                if isinstance(part, dict) and _is_image(part):
                    yield _image(part, where)


def _files(messages: Sequence[Json]) -> Iterator[FilePart]:
    for index, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            continue
        for number, part in enumerate(content):
            where = f"messages[{index}].content[{number}]"
            if isinstance(part, dict) and part.get("type") == "file":
                yield files.of_file(part, content, where)
            elif isinstance(part, dict) and part.get("type") == "video_url":
                yield files.of_video(part, content, where)


def _holds_rows(part: Json) -> bool:
    """Whether an engine would take it for a tower's rows in place of a picture."""
    kind = part.get("type")
    return kind == "image_embeds" or (kind is None and "image_embeds" in part)


def _is_image(part: Json) -> bool:
    """As the engine judges: by type, or by the key where there is no type."""
    kind = part.get("type")
    return kind in IMAGE_KEYS or (kind is None and any(key in part for key in IMAGE_KEYS))


def _image(part: Json, where: str) -> ImagePart:
    key: str | None = next((key for key in ("image_url", "image") if key in part), None)
    if key is None:
        raise ApiError("invalid_value", f"{where}: has no image_url; expected a URL or a data URL", param=where)
    value = part[key]
    if isinstance(value, dict):
        where_url = f"{where}.{key}.url"
        holder, key = value, "url"
    else:
        where_url = f"{where}.{key}"
        holder = part
    if not isinstance(holder.get(key), str) or not holder[key]:
        found = short(holder.get(key))
        raise ApiError("invalid_value", f"{where_url}: {found} is not supported; expected a URL", param=where_url)
    return ImagePart(where, holder, key, part)
