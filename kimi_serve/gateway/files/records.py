"""What is known of a file, and how OpenAI's clients see it. Knows names and times; no folder."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final, Literal, get_args

from kimi_serve.protocol.chat import Json
from kimi_serve.protocol.errors import ApiError, short

Purpose = Literal["batch", "vision", "user_data", "batch_output"]
PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)
UPLOADED: Final[tuple[Purpose, ...]] = ("batch", "vision", "user_data")  # batch_output is what batches make
EXPIRES_S: Final = (3600, 30 * 86_400)  # what a client may ask for, as OpenAI has it
_LONGEST_NAME: Final = 255
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    tenant: str
    hash: str  # blake3 of its bytes, by which they are found
    bytes: int
    created: int
    expires: int | None
    filename: str
    purpose: Purpose

    def shown(self) -> Json:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created,
            "expires_at": self.expires,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


def file_not_found(file_id: str, param: str | None = None) -> ApiError:
    return ApiError("file_not_found", f"{param or 'file_id'}: there is no file {short(file_id)}", param=param)


def purpose_of(value: str) -> Purpose:
    for purpose in UPLOADED:
        if value == purpose:
            return purpose
    what = f"purpose: {short(value)} is not supported; expected one of {', '.join(UPLOADED)}"
    raise ApiError("invalid_value", what, param="purpose")


def name_of(filename: str) -> str:
    """The last part of a path, without what could confuse a terminal or a header."""
    name = _CONTROL.sub("", filename).replace("\\", "/").rpartition("/")[2]
    return name[-_LONGEST_NAME:] or "file"


def lifetime(anchor: object, seconds: object, param: str = "expires_after") -> int:
    """OpenAI's expires_after: seconds after the file was made."""
    if anchor != "created_at":
        what = f"{param}.anchor: {short(anchor)} is not supported; expected 'created_at'"
        raise ApiError("invalid_value", what, param=f"{param}.anchor")
    least, most = EXPIRES_S
    if type(seconds) is not int or not least <= seconds <= most:
        what = f"{param}.seconds: {short(seconds)} is not supported; expected a whole number from {least} to {most}"
        raise ApiError("invalid_value", what, param=f"{param}.seconds")
    return seconds
