"""PDFs to read, made with reportlab. Knows what is on their pages; renders nothing."""

from __future__ import annotations

import base64
import io
import random
import zlib
from collections.abc import Sequence

from PIL import Image
from reportlab.lib.pagesizes import A4
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

LANDSCAPE = (842.0, 595.0)


def pdf(
    pages: int = 3,
    *,
    sizes: Sequence[tuple[float, float]] = (A4,),
    password: str | None = None,
    photograph: bool = False,
    filled_in: bool = False,
) -> bytes:
    """Each page has a large bar of a colour of its own, and its number as text."""
    buffer = io.BytesIO()
    lock = StandardEncryption(password, ownerPassword="owner") if password is not None else None
    canvas = Canvas(buffer, encrypt=lock, invariant=True)
    for number in range(1, pages + 1):
        width, height = sizes[(number - 1) % len(sizes)]
        canvas.setPageSize((width, height))
        canvas.setFillColorRGB(*colour(number))
        canvas.rect(0, 0, width, height / 2, stroke=0, fill=1)
        canvas.setFillColorRGB(0, 0, 0)
        canvas.drawString(width / 10, height * 0.8, f"This is page {number}.")
        if photograph:
            canvas.drawImage(ImageReader(noise()), 0, 0, width, height)
        if filled_in:
            canvas.acroForm.textfield(name="name", value="MMMMMMMM", x=50, y=height * 0.6, width=300, height=40)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def endless() -> bytes:
    """A page that is some hundred kilobytes in its file, and three million curves to draw."""
    return _of_content(b"0 0 m 500 700 l 10 690 l 480 3 l b\n" * 3_000_000)


def swelling() -> bytes:
    """A page of 300 MB that are nothing."""
    return _of_content(b" " * 300_000_000)


def _of_content(content: bytes) -> bytes:
    """Squeezed twice, since once leaves a thousandth."""
    packed = zlib.compress(zlib.compress(content, 1))
    filters = b"/Filter [/FlateDecode /FlateDecode]"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R >>",
        b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(packed), filters, packed),
    ]
    file = bytearray(b"%PDF-1.4\n")
    places = []
    for number, one in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = len(file)
    file += b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(file + b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % table)


def colour(number: int) -> tuple[float, float, float]:
    return ((number * 37 % 97) / 97, (number * 53 % 89) / 89, (number * 71 % 83) / 83)


def noise() -> Image.Image:
    return Image.effect_noise((600, 800), 120).convert("RGB")


def as_url(data: bytes, media_type: str = "application/pdf") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def mutated(data: bytes, seed: int) -> bytes:
    """A copy with damage of some kind: bytes changed, parts cut out, doubled or swapped, numbers made huge."""
    draw = random.Random(seed)
    broken = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(broken))
        size = draw.randint(1, 64)
        match draw.randrange(6):
            case 0:
                broken[at] = draw.randrange(256)
            case 1:
                del broken[at : at + size]
            case 2:
                broken[at:at] = broken[at : at + size]
            case 3:
                broken[at : at + size] = draw.randbytes(size)
            case 4:
                digits = [place for place in range(len(broken)) if 48 <= broken[place] <= 57]
                for place in draw.sample(digits, min(4, len(digits))):
                    broken[place] = 48 + draw.randrange(10)
            case _:
                number = draw.choice((b"99999999999", b"-1", b"0", b"2147483647", b"1e30"))
                broken[at : at + len(number)] = number
        if not broken:
            return b"%PDF-1.4"
    return bytes(broken)
