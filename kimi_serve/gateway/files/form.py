"""multipart/form-data in pieces: small fields kept, the file's bytes handed on. Knows the framing; no disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kimi_serve.protocol.errors import ApiError, short

_MOST_FIELDS: Final = 16
_LONGEST_FIELD: Final = 4096  # bytes
_FILE: Final = b"file"


@dataclass(slots=True)
class _Part:
    header: bytes = b""
    disposition: bytes = b""
    name: bytes = b""
    filename: bytes | None = None
    value: bytearray = field(default_factory=bytearray)


class Form:
    """`form.feed(bytes)` gives what of them is the file's; `form.end()` says whether all of it was there."""

    def __init__(self, content_type: str | None) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            what = f"{short(content_type)} is not supported; expected multipart/form-data with a boundary"
            raise ApiError("invalid_upload", f"content-type: {what}")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None  # of the file, once it has begun
        self._part = _Part()
        self._parts = 0
        self._found: list[bytes] = []
        self._is_complete = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _broken() from error

    def feed(self, data: bytes) -> list[bytes]:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _broken() from error
        found, self._found = self._found, []
        return found

    def end(self) -> None:
        if not self._is_complete:
            raise ApiError("invalid_upload", "the body breaks off before its last boundary")
        if self.filename is None:
            raise ApiError(
                "invalid_value", "file: is missing; expected a part with this name and a filename", param="file"
            )

    def _begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > _MOST_FIELDS:
            raise ApiError("invalid_upload", f"the form has more than {_MOST_FIELDS} parts")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._part.header += data[start:end].lower()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        if self._part.header == b"content-disposition":
            self._part.disposition += data[start:end]

    def _header_end(self) -> None:
        self._part.header = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        part = self._part
        part.name, part.filename = options.get(b"name", b""), options.get(b"filename")
        if part.name == _FILE and part.filename is not None:
            if self.filename is not None:
                raise ApiError("invalid_upload", "file: is there twice; expected one file", param="file")
            self.filename = part.filename.decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.name == _FILE and part.filename is not None:
            self._found.append(data[start:end])
            return
        if len(part.value) + end - start > _LONGEST_FIELD:
            raise ApiError("invalid_upload", f"{_text(part.name)}: is longer than {_LONGEST_FIELD} bytes")
        part.value += data[start:end]

    def _part_end(self) -> None:
        if self._part.filename is None:
            self.fields[_text(self._part.name)] = _text(bytes(self._part.value))

    def _end(self) -> None:
        self._is_complete = True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _broken() -> ApiError:
    """The parser's own words quote what was sent."""
    return ApiError("invalid_upload", "the body is not multipart/form-data with the boundary that its header names")
