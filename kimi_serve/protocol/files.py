"""Parts that may hold a document, a video or a picture. Knows the dialects' fields; never what the bytes are.

A parser finds them and leaves them where they are. What they show takes their place in the body, as text and pictures
of the same dialect, and then the body is parsed again: behind that nobody knows that there ever was a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from kimi_serve.protocol.errors import ApiError, kind_of, short

Json = dict[str, Any]
Form = Literal["chat", "responses", "messages"]
DOCUMENT_OPTIONS: Final = ("pages", "text")
VIDEO_OPTIONS: Final = ("fps", "frames", "timestamps", "sampling")


@dataclass(frozen=True, slots=True)
class Image:
    """A picture that a file shows."""

    url: str  # a data URL


@dataclass(frozen=True, slots=True)
class FilePart:
    where: str  # messages[1].content[0]
    form: Form
    part: Json
    siblings: list[Json]  # in which it stands
    url: str
    is_video: bool = False  # it says so; a file says nothing

    def options(self, names: Iterable[str]) -> Json:
        """Our own fields of the part that are set."""
        return {name: self.part[name] for name in names if self.part.get(name) is not None}

    def become(self, shown: Iterable[str | Image]) -> list[Json]:
        """Texts and pictures take its place. They are returned as they stand in the body."""
        parts = [_image(one, self.form) if isinstance(one, Image) else _text(one, self.form) for one in shown]
        at = next(number for number, part in enumerate(self.siblings) if part is self.part)
        self.siblings[at : at + 1] = parts
        return parts


def of_file(part: Json, siblings: list[Json], where: str) -> FilePart:
    """Chat's `file`. Raises ApiError."""
    return FilePart(where, "chat", part, siblings, _url_of(part.get("file"), f"{where}.file"))


def of_input_file(part: Json, siblings: list[Json], where: str) -> FilePart:
    """Responses' `input_file`."""
    return FilePart(where, "responses", part, siblings, _url_of(part, where))


def of_video(part: Json, siblings: list[Json], where: str) -> FilePart:
    """Chat's `video_url`."""
    holder = part.get("video_url")
    url = holder.get("url") if isinstance(holder, dict) else holder
    if not isinstance(url, str) or not url:
        place = f"{where}.video_url.url" if isinstance(holder, dict) else f"{where}.video_url"
        raise _refused(place, f"{kind_of(url)} is not supported; expected a URL or a data URL of a video")
    return FilePart(where, "chat", part, siblings, url, is_video=True)


def of_document(block: Json, siblings: list[Json], where: str) -> FilePart:
    """Anthropic's `document`: of bytes or of a URL."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else source
    if kind == "file":
        raise _refused(f"{where}.source.type", "'file' is not supported, since the server keeps no files; send base64")
    if kind not in ("base64", "url"):
        found = short(kind) if isinstance(source, dict) else kind_of(source)
        what = f"{found} is not supported; send a text as a text block, a picture or a PDF as base64"
        raise _refused(f"{where}.source.type", what)
    assert isinstance(source, dict)
    name = "url" if kind == "url" else "data"
    value = source.get(name)
    if not isinstance(value, str) or not value:
        raise _refused(f"{where}.source.{name}", f"{kind_of(value)} is not supported; expected a string")
    url = value if kind == "url" else f"data:application/octet-stream;base64,{value}"
    return FilePart(where, "messages", block, siblings, url)


def _url_of(file: object, where: str) -> str:
    """Of OpenAI's `file` object, or of an `input_file`, which has the same fields."""
    if not isinstance(file, dict):
        raise _refused(where, f"{kind_of(file)} is not supported; expected an object with file_data")
    if file.get("file_id") is not None:
        raise _refused(f"{where}.file_id", "is not supported, since the server keeps no files; send file_data")
    data, url = file.get("file_data"), file.get("file_url")
    if isinstance(data, str) and data:
        return data if data[:5].lower() == "data:" else f"data:application/octet-stream;base64,{data}"
    if isinstance(url, str) and url:
        return url
    raise _refused(f"{where}.file_data", f"{kind_of(data)} is not supported; expected a data URL")


def _image(image: Image, form: Form) -> Json:
    if form == "chat":
        return {"type": "image_url", "image_url": {"url": image.url}}
    if form == "responses":
        return {"type": "input_image", "detail": "auto", "image_url": image.url}
    if image.url[:5].lower() != "data:":
        return {"type": "image", "source": {"type": "url", "url": image.url}}
    head, _, data = image.url.partition(",")
    media_type = head[5:].partition(";")[0]
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _text(text: str, form: Form) -> Json:
    return {"type": "input_text" if form == "responses" else "text", "text": text}


def _refused(param: str, problem: str) -> ApiError:
    return ApiError("invalid_value", f"{param}: {problem}", param=param)
