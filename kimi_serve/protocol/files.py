"""File parts that may hold a picture, as image parts. Knows the dialects' fields; never what the bytes are."""

from __future__ import annotations

from typing import Any

from kimi_serve.protocol.errors import ApiError, kind_of, short

Json = dict[str, Any]


def url_of(file: object, where: str) -> str:
    """Of OpenAI's `file` object, or of an `input_file`, which has the same fields. Raises ApiError."""
    if not isinstance(file, dict):
        raise _refused(where, f"{kind_of(file)} is not supported; expected an object with file_data")
    if file.get("file_id") is not None:
        raise _refused(f"{where}.file_id", "is not supported, since the server keeps no files; send file_data")
    data, url = file.get("file_data"), file.get("file_url")
    if isinstance(data, str) and data:
        return data if data[:5].lower() == "data:" else f"data:application/octet-stream;base64,{data}"
    if isinstance(url, str) and url:
        return url
    raise _refused(f"{where}.file_data", f"{kind_of(data)} is not supported; expected a data URL of a picture")


def document_as_image(block: Json, where: str) -> None:
    """Anthropic's document, in place: of bytes or of a URL, it is an image until its bytes say otherwise."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else source
    if kind == "file":
        raise _refused(f"{where}.source.type", "'file' is not supported, since the server keeps no files; send base64")
    if kind not in ("base64", "url"):
        found = short(kind) if isinstance(source, dict) else kind_of(source)
        what = f"{found} is not supported; send a text as a text block, a picture as base64"
        raise _refused(f"{where}.source.type", what)
    block.clear()
    block.update({"type": "image", "source": source})


def _refused(param: str, problem: str) -> ApiError:
    return ApiError("invalid_value", f"{param}: {problem}", param=param)
