"""What a file is, from its first bytes. Knows signatures; the headers of pictures are media/'s to read."""

from __future__ import annotations

from typing import Final, Literal

Kind = Literal["picture", "document", "video"]

_PDF_WITHIN: Final = 1024  # bytes: readers look for %PDF- so far
_PICTURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0")


def kind_of(data: bytes) -> Kind:
    """What is unknown goes for a picture: it is refused as one, by name where it has one."""
    if not data.startswith(_PICTURES) and b"%PDF-" in data[:_PDF_WITHIN]:
        return "document"
    return "picture"
