"""Data URLs, unwrapped. Knows RFC 2397 and what vLLM's decoder takes; does not look at the bytes.

vLLM takes `;base64` only, of the standard alphabet, padded and without whitespace; so no more is taken here. The
percent form, which vLLM refuses, is taken too: `encode` gives it the form that vLLM reads.
"""

from __future__ import annotations

import binascii
import re
from typing import Final

import pybase64

from kimi_serve.protocol.errors import ApiError

HEAD_LIMIT: Final = 1024  # bytes before the comma

_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_RAW = re.compile(rb"[!-~]*")  # printable ASCII; anything else must be escaped


def is_data_url(url: str | bytes) -> bool:
    return url[:5].lower() in ("data:", b"data:")


def decode(url: str | bytes, *, max_bytes: int) -> bytes:
    """Return the bytes in a data URL. ApiError: invalid_media_url or image_too_large, before anything is decoded."""
    text = url if isinstance(url, str) else url.decode("latin-1")
    if not text.isascii():
        raise _invalid("it holds characters outside ASCII")
    comma = text.find(",", 0, HEAD_LIMIT)
    if not is_data_url(text) or comma < 0:
        raise _invalid(f"expected data:TYPE;base64,DATA with a comma in the first {HEAD_LIMIT} bytes")
    if text[5:comma].endswith(";base64"):
        return _from_base64(text[comma + 1 :], max_bytes)
    return _from_percent(text[comma + 1 :].encode(), max_bytes)


def encode(data: bytes, media_type: str) -> str:
    """Build the data URL that vLLM reads."""
    return f"data:{media_type};base64,{pybase64.b64encode_as_string(data)}"


def _from_base64(text: str, max_bytes: int) -> bytes:
    _check_size(len(text) // 4 * 3 - text[-2:].count("="), max_bytes)
    if len(text) % 4:
        raise _invalid("its base64 is cut off or padded too much")
    try:
        return pybase64.b64decode(text, validate=True)  # what vLLM calls, so that both take and refuse the same
    except binascii.Error:
        raise _invalid("its base64 is broken; expected A-Z a-z 0-9 + / and padding, no whitespace") from None


def _from_percent(text: bytes, max_bytes: int) -> bytes:
    _check_size(len(text) - 2 * text.count(b"%"), max_bytes)
    if _PERCENT.search(text) or not _RAW.fullmatch(text):
        raise _invalid("its data are neither base64 nor percent-encoded")
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode("ascii")), text)


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ApiError(
            "image_too_large", f"data URL: {size} bytes exceed the limit of {max_bytes}; send a smaller image"
        )


def _invalid(what: str) -> ApiError:
    return ApiError("invalid_media_url", f"data URL: {what}")
