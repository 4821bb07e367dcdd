"""`pages`: which pages of a document are meant, as a client writes it. Knows numbers; no document."""

from __future__ import annotations

import re
from typing import Final

from kimi_serve.protocol.errors import ApiError, short

_RANGE: Final = re.compile(r"([1-9][0-9]{0,5})(?:(-)([1-9][0-9]{0,5})?)?")
_MOST_RANGES: Final = 100
Range = tuple[int, int | None]  # from 1, both ends in it; None: to the last page


def read_pages(asked: object, where: str) -> list[Range] | None:
    """Of "1-3,7" or "5-"; None: all. Raises ApiError."""
    if asked is None:
        return None
    texts = asked.split(",") if isinstance(asked, str) else []
    found = [_RANGE.fullmatch(text.strip()) for text in texts]
    ranges: list[Range] = []
    for match in found:
        if match is None:
            break
        first, dash, last = match.groups()
        end = None if dash and not last else int(last or first)
        if end is not None and end < int(first):
            break
        ranges.append((int(first), end))
    if not texts or len(ranges) < len(texts) or len(texts) > _MOST_RANGES:
        what = f'{where}.pages: {short(asked)} is not supported; expected numbers and ranges, such as "1-3,7" or "5-"'
        raise ApiError("invalid_value", what, param=f"{where}.pages")
    return ranges
