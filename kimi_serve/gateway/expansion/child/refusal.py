"""How a reader says no to a file. Knows the kinds of no; never a code of the API."""

from __future__ import annotations

from typing import Final

INVALID: Final = "invalid"
ENCRYPTED: Final = "encrypted"
TOO_LARGE: Final = "too_large"
WRONG_OPTION: Final = "option"  # the file is sound, what was asked of it is not


class RefusalError(Exception):
    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why  # one sentence without a subject: it goes behind the part's place
