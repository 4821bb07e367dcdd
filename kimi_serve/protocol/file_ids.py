"""Where a request names a file instead of holding its bytes. Knows the dialects' fields; never a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FileId:
    """A file's place in a body: chat's `file`, `image_url` or `video_url`, Responses' parts, an Anthropic source."""

    where: str  # of the id itself
    holder: Json
    field: Literal["file_data", "image_url", "url", "source"]

    @property
    def id(self) -> object:
        return self.holder["file_id"]

    def fill(self, data: str) -> None:
        """Its bytes, in base64, in place of its id: from here on they are as if the client had sent them."""
        del self.holder["file_id"]
        if self.field == "source":
            self.holder.update({"type": "base64", "media_type": "application/octet-stream", "data": data})
        else:
            self.holder[self.field] = f"data:application/octet-stream;base64,{data}"


def of_body(body: Json) -> Iterator[FileId]:
    """In a chat, a Responses or an Anthropic body. What has not the form of one is for its parser to refuse."""
    for name, keys in (("messages", ("content",)), ("input", ("content", "output"))):
        items = body.get(name)
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if isinstance(item, dict):
                for key in keys:
                    yield from _of_parts(item.get(key), f"{name}[{index}].{key}")


def _of_parts(parts: object, where: str, *, is_result: bool = False) -> Iterator[FileId]:
    for number, part in enumerate(parts if isinstance(parts, list) else ()):
        if not isinstance(part, dict):
            continue
        place = f"{where}[{number}]"
        match part.get("type"):
            case "file" if _names(part.get("file")):
                yield FileId(f"{place}.file.file_id", part["file"], "file_data")
            case "image_url" | "video_url" as kind if _names(part.get(kind)):
                yield FileId(f"{place}.{kind}.file_id", part[kind], "url")
            case "input_file" if _names(part):
                yield FileId(f"{place}.file_id", part, "file_data")
            case "input_image" if _names(part):
                yield FileId(f"{place}.file_id", part, "image_url")
            case "image" | "document" if _names(part.get("source")):
                yield FileId(f"{place}.source.file_id", part["source"], "source")
            case "tool_result" if not is_result:  # there is none within another
                yield from _of_parts(part.get("content"), f"{place}.content", is_result=True)


def _names(holder: object) -> bool:
    return isinstance(holder, dict) and holder.get("file_id") is not None
