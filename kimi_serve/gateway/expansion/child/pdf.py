"""Pages of a PDF, by pdfium. Knows points and pixels; the gateway says which pages, and how large."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pypdfium2
import pypdfium2.raw
from PIL import Image
from pypdfium2 import PdfDocument, PdfiumError, PdfPage

from kimi_serve.gateway.expansion.child.refusal import ENCRYPTED, INVALID, TOO_LARGE, WRONG_OPTION, RefusalError

Json = dict[str, Any]
Ranges = Sequence[tuple[int, int | None]]

_PASSWORD: Final = (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY)
_JPEG_QUALITY: Final = 90
_BYTES_A_PIXEL: Final = 0.5  # of a PNG: beyond, the page is a photograph, and JPEG has a tenth of the bytes
_SMALLEST_PT: Final = 0.01  # a side of a page


def open(data: bytes, asked: Json) -> tuple[PdfDocument, Json]:
    """`asked`: ranges of pages and the most of them. Told: the chosen pages, and their sizes in points."""
    try:
        document = PdfDocument(data)
    except PdfiumError as error:
        if error.err_code in _PASSWORD:
            raise RefusalError(ENCRYPTED, "is encrypted; remove its password") from error
        raise RefusalError(INVALID, "is damaged: it has no readable list of pages") from error
    document.init_forms()  # so that what was filled in is drawn; this pdfium has no JavaScript
    count = len(document)
    if count < 1:
        raise RefusalError(INVALID, "is damaged: it has no pages")
    pages = _chosen(asked["ranges"], count)
    if len(pages) > asked["most"]:
        why = f"has {len(pages)} pages to show, and {asked['most']} are the most: choose some by `pages`"
        raise RefusalError(TOO_LARGE, why)
    return document, {"count": count, "pages": pages, "sizes": [_size(document, number) for number in pages]}


def show(document: PdfDocument, plan: Json) -> Iterator[tuple[Json, bytes]]:
    """`plan`: pages with their size in pixels, and whether their text is wanted, at most so many characters of it."""
    left = plan["most_text"]
    for number, width, height in plan["pages"]:
        page = _page(document, number)
        text = _text(page, left) if plan["text"] else ""
        left -= len(text)
        media_type, shown = _encoded(_rendered(document, page, width, height))
        yield {"page": number, "media_type": media_type, "text": text}, shown
        page.close()


def _chosen(ranges: Ranges | None, count: int) -> list[int]:
    """Numbers from 1, in the order in which they were asked for, each once."""
    if ranges is None:
        return list(range(1, count + 1))
    chosen: dict[int, None] = {}
    for first, last in ranges:
        end = count if last is None else last
        if max(first, end) > count:
            pages = "1 page" if count == 1 else f"{count} pages"
            raise RefusalError(WRONG_OPTION, f"pages: {max(first, end)} is not there; the document has {pages}")
        chosen |= dict.fromkeys(range(first, end + 1))
    return list(chosen)


def _page(document: PdfDocument, number: int) -> PdfPage:
    try:
        return document[number - 1]
    except PdfiumError as error:
        raise RefusalError(INVALID, f"is damaged: its page {number} cannot be read") from error


def _size(document: PdfDocument, number: int) -> tuple[float, float]:
    try:
        width, height = document.get_page_size(number - 1)
    except PdfiumError as error:
        raise RefusalError(INVALID, f"is damaged: its page {number} cannot be read") from error
    if not all(math.isfinite(side) and side >= _SMALLEST_PT for side in (width, height)):
        raise RefusalError(INVALID, f"is damaged: its page {number} has no size")
    return width, height


def _rendered(document: PdfDocument, page: PdfPage, width: int, height: int) -> Image.Image:
    """Exactly of that size. pypdfium2's own render takes a scale, and rounds."""
    raw = pypdfium2.raw
    bitmap = pypdfium2.PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
    drawn = (bitmap, page, 0, 0, width, height, 0, raw.FPDF_ANNOT)
    raw.FPDF_RenderPageBitmap(*drawn)
    if document.formenv:
        raw.FPDF_FFLDraw(document.formenv, *drawn)
    image: Image.Image = bitmap.to_pil()
    return image


def _encoded(image: Image.Image) -> tuple[str, bytes]:
    """PNG, so that small letters keep their edges, and flat colours cost next to nothing; photographs as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    if buffer.tell() <= image.width * image.height * _BYTES_A_PIXEL:
        return "image/png", buffer.getvalue()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "image/jpeg", buffer.getvalue()


def _text(page: PdfPage, most: int) -> str:
    """Of the page's text layer, in reading order as far as pdfium knows it."""
    try:
        layer = page.get_textpage()
    except PdfiumError:
        return ""  # the page may have pixels all the same
    if layer.count_chars() > most:
        raise RefusalError(TOO_LARGE, f"has more text than the {most} characters that are left: choose fewer `pages`")
    text: str = layer.get_text_bounded()
    layer.close()
    return text.encode("utf-8", "replace").decode().replace("\r\n", "\n").strip("\n\0 ")


def _warm_up() -> None:
    """What is imported at its first use has to be there before no file can be opened any more."""
    document = PdfDocument.new()
    page = document.new_page(8, 8)
    _rendered(document, page, 8, 8)
    _text(page, 8)
    for is_noise in (True, False):
        _encoded(Image.effect_noise((64, 64), 100).convert("RGB") if is_noise else Image.new("RGB", (8, 8)))
    "".encode("utf-16-le")
    document.close()


_warm_up()
