"""The lines of a batch's input. Knows JSONL and OpenAI's form of a line; asks nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Final

import msgspec

from kimi_serve.gateway.batches.records import Endpoint, Problem
from kimi_serve.protocol.errors import short

MOST_PROBLEMS: Final = 100  # that are told
_LONGEST_ID: Final = 512
_SHORTEST: Final = 2  # bytes of a body


@dataclass(frozen=True, slots=True)
class Limits:
    lines: int
    line_bytes: int


@dataclass(frozen=True, slots=True)
class Line:
    number: int  # from 1, as editors count
    custom_id: str
    start: int  # in bytes
    length: int


class _Asked(msgspec.Struct):
    body: msgspec.Raw
    custom_id: object = None
    method: object = None
    url: object = None


class _Body(msgspec.Struct):
    stream: object = None


class _RefusedError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        self.problem = (code, message, param)


def read(path: Path, endpoint: Endpoint, limits: Limits) -> tuple[list[Line], list[Problem]]:
    """All lines of the file, and what is wrong with it: then nothing of it may be asked."""
    found: list[Line] = []
    problems: list[Problem] = []
    places: dict[str, int] = {}
    with path.open("rb") as file:
        for number, start, raw in _raw_lines(file, limits.line_bytes):
            if len(problems) >= MOST_PROBLEMS:
                break
            try:
                custom_id = _checked(raw, endpoint, limits, places)
            except _RefusedError as refused:
                code, message, param = refused.problem
                problems.append(Problem(code, message, number, param))
                continue
            places[custom_id] = number
            found.append(Line(number, custom_id, start, len(raw)))
            if len(found) > limits.lines:
                return found, [Problem("too_many_lines", f"the file has more than {limits.lines} lines")]
    if not found and not problems:
        problems.append(Problem("empty_file", "the file has no line with a request"))
    return found, problems


def body_of(path: Path, start: int, length: int) -> bytes:
    """The request in a line, byte for byte."""
    with path.open("rb") as file:
        file.seek(start)
        return bytes(msgspec.json.decode(file.read(length), type=_Asked).body)


def _raw_lines(file: BufferedReader, most: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and bytes of each line that is not empty; of one that is too long, one byte too many."""
    number = start = 0
    while raw := file.readline(most + 1):
        number += 1
        if raw.strip():
            yield number, start, raw
        start += len(raw)
        while len(raw) > most and not raw.endswith(b"\n"):
            raw = file.readline(most + 1)
            start += len(raw)


def _checked(raw: bytes, endpoint: Endpoint, limits: Limits, places: Mapping[str, int]) -> str:
    """Its custom_id, which is none of those that have places already."""
    if len(raw) > limits.line_bytes:
        raise _RefusedError("line_too_long", f"the line has more than {limits.line_bytes} bytes")
    try:
        asked = msgspec.json.decode(raw.decode(), type=_Asked)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = "the line is not a JSON object with custom_id, method, url and body"
        raise _RefusedError("invalid_json_line", message) from None
    if not isinstance(asked.custom_id, str) or not 0 < len(asked.custom_id) <= _LONGEST_ID:
        what = f"custom_id: {short(asked.custom_id)} is not supported; expected a text of 1 to {_LONGEST_ID} characters"
        raise _RefusedError("invalid_custom_id", what, "custom_id")
    if asked.method != "POST":
        raise _RefusedError(
            "invalid_method", f"method: {short(asked.method)} is not supported; expected 'POST'", "method"
        )
    if asked.url != endpoint:
        raise _RefusedError(
            "mismatched_url", f"url: {short(asked.url)} is not the batch's endpoint {endpoint!r}", "url"
        )
    _check_body(bytes(asked.body))
    if asked.custom_id in places:
        what = f"custom_id: {short(asked.custom_id)} is that of line {places[asked.custom_id]} too"
        raise _RefusedError("duplicate_custom_id", what, "custom_id")
    return asked.custom_id


def _check_body(raw: bytes) -> None:
    try:
        body = msgspec.json.decode(raw, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _RefusedError("invalid_body", "body: expected an object", "body") from None
    if body.stream not in (None, False):
        raise _RefusedError("invalid_body", "body.stream: a batch's answers do not stream; leave it out", "body.stream")
