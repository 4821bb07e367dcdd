"""A body on its way to an engine, its pictures apart, so that any can stay out. Knows JSON; never what an engine holds.

A picture has a name, of its content and the tenant's salt, by which engines know it: vLLM's `uuid`. Chat and Responses
have a field for it. Messages has none: there it is a parameter of the media type, which the engine's renderer reads.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from kimi_serve.protocol import chat
from kimi_serve.protocol.anthropic import Messages
from kimi_serve.protocol.chat import ImagePart, Json

_MARK: Final = f"kimi-serve-picture-{secrets.token_hex(16)}"  # nobody outside knows it, so no text can be taken for one
_PLACES: Final = re.compile(rb'"%s-(\d+)"' % _MARK.encode())


@dataclass(frozen=True, slots=True)
class Packed:
    """A picture in a body."""

    name: bytes
    value: object  # what the field holds, bytes and all
    url: str  # in it, and plain ASCII that JSON need not escape
    bare: bytes  # the field's JSON where they stay out
    size: int  # bytes that are saved then


@dataclass(frozen=True, slots=True)
class Packet:
    """What goes to one engine."""

    parts: list[bytes]  # joined, they are the body: to join megabytes costs more than to send them one by one
    left_out: tuple[bytes, ...]  # names of pictures
    saved: int  # bytes


@dataclass(frozen=True, slots=True)
class Parcel:
    pieces: tuple[bytes, ...]  # JSON before, between and behind the pictures
    pictures: tuple[Packed, ...] = ()

    @property
    def size(self) -> int:
        """Bytes, with every picture in it."""
        return sum(map(len, self.pieces)) + sum(picture.size for picture in self.pictures)

    def pack(self, is_held: Callable[[bytes], bool] | None = None) -> Packet:
        """The body without the pictures that are held."""
        left_out, saved, parts = [], 0, [self.pieces[0]]
        for picture, after in zip(self.pictures, self.pieces[1:], strict=True):
            if is_held is not None and is_held(picture.name):
                parts.append(picture.bare)
                left_out.append(picture.name)
                saved += picture.size
            else:
                parts += _written(picture)
            parts.append(after)
        return Packet(parts, tuple(left_out), saved)


def wrap(body: Json, images: Sequence[ImagePart], names: Sequence[bytes]) -> Parcel:
    """A chat or Responses body, which is changed."""
    packed = []
    for image, name in zip(images, names, strict=True):
        if "image_url" in image.part:  # what calls itself otherwise is refused by the engine
            packed.append(Packed(name, image.part["image_url"], image.url, b"null", len(image.url)))
            image.part.update(image_url=f"{_MARK}-{len(packed) - 1}", uuid=name.hex())
    return _cut(body, packed)


def wrap_messages(body: Json, messages: Messages, names: Sequence[bytes]) -> Parcel:
    """An Anthropic body, which is changed: every source is one of base64 then."""
    packed = []
    for number, (source, image, name) in enumerate(zip(messages.sources, messages.chat.images, names, strict=True)):
        head, _, data = image.url.partition(",")
        packed.append(Packed(name, data, data, b'""', len(data)))
        media_type = f"{head.removeprefix('data:').removesuffix(';base64')};uuid={name.hex()}"
        source.clear()
        source.update({"type": "base64", "media_type": media_type, "data": f"{_MARK}-{number}"})
    return _cut(body, packed)


def _written(picture: Packed) -> list[bytes]:
    """The field's JSON. Megabytes of base64 are not looked through for what JSON escapes: decoding has found none."""
    if picture.value is picture.url:
        return [b'"', picture.url.encode("ascii"), b'"']
    if picture.value == {"url": picture.url}:
        return [b'{"url":"', picture.url.encode("ascii"), b'"}']
    return [chat.encode(picture.value)]


def _cut(body: Json, packed: Sequence[Packed]) -> Parcel:
    found = _PLACES.split(chat.encode(body))
    return Parcel(tuple(found[::2]), tuple(packed[int(number)] for number in found[1::2]))
