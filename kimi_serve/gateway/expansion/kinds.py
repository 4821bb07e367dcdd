"""What a file is, from its first bytes. Knows signatures; the headers of pictures are media/'s to read."""

from __future__ import annotations

from typing import Final, Literal

Kind = Literal["picture", "document", "video"]

MP4: Final = "mov"  # FFmpeg's names of what reads them
MATROSKA: Final = "matroska"
GIF: Final = "gif"
_PDF_WITHIN: Final = 1024  # bytes: readers look for %PDF- so far
_PICTURES: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"RIFF")
_PICTURE_BRANDS: Final = (b"avi", b"hei", b"hev", b"mif", b"msf")  # of ISO files: AVIF and HEIC
_OLD_MOVIES: Final = (b"moov", b"mdat", b"wide", b"free", b"skip")  # QuickTime's, from before there was ftyp


def kind_of(data: bytes, *, is_video: bool) -> Kind:
    """What is unknown goes for a picture: it is refused as one, by name where it has one.

    A GIF is a picture, unless its part says that it is a video.
    """
    if video_format(data, with_gif=is_video):
        return "video"
    if not data.startswith(_PICTURES) and b"%PDF-" in data[:_PDF_WITHIN]:
        return "document"
    return "picture"


def video_format(data: bytes, *, with_gif: bool = True) -> str | None:
    """FFmpeg's name of a video's format; None for everything else."""
    box = data[4:8]
    if box == b"ftyp" and data[8:11] not in _PICTURE_BRANDS:
        return MP4
    if box in _OLD_MOVIES and not data.startswith(_PICTURES):
        return MP4
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return MATROSKA
    return GIF if with_gif and data.startswith(b"GIF8") else None
