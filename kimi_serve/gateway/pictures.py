"""The pictures of a request: fetched where they are remote, measured by their headers. Decodes no pixel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.media import data_urls
from kimi_serve.gateway.media.fetch import Fetcher
from kimi_serve.gateway.media.headers import MEDIA_TYPES, read_header
from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.settings import Media
from kimi_serve.protocol.chat import ImagePart
from kimi_serve.protocol.errors import ApiError

_HASH_BYTES: Final = 32
_NAMES: Final = "kimi_serve 2026-11-22 names of pictures in engines' caches"
_PLAIN_HEAD: Final = re.compile(r"data:image/[a-z0-9.+-]{1,64};base64")  # the form that engines read, and nothing more


@dataclass(frozen=True, slots=True)
class Seen:
    size: tuple[int, int]  # width, height, upright
    hash: bytes  # of its content
    format: str  # as its header says

    def name(self, salt: str | None) -> bytes:
        """What engines know it by: another for every tenant, so that nobody can meet or guess another's."""
        return blake3((salt or "").encode() + self.hash, derive_key_context=_NAMES).digest(_HASH_BYTES)


@dataclass(frozen=True, slots=True)
class Eye:
    """Looks at pictures with one request's rules."""

    rules: Media
    fetcher: Fetcher
    metrics: Metrics

    async def look(self, images: Sequence[ImagePart], reservation: Reservation) -> list[Seen]:
        """What every image is, in order. Afterwards each is a base64 data URL in its part."""
        if len(images) > self.rules.max_images:
            message = f"{len(images)} images are more than the {self.rules.max_images} that one prompt may hold"
            raise ApiError("too_many_images", message, param=images[self.rules.max_images].where)
        remote = [image for image in images if not data_urls.is_data_url(image.url)]
        fetched = await self._fetch(remote, reservation) if remote else {}
        return [self._see(image, fetched.get(image.where)) for image in images]

    async def _fetch(self, images: Sequence[ImagePart], reservation: Reservation) -> dict[str, bytes]:
        if not self.rules.allow_remote:
            message = f"{images[0].where}: URLs are not fetched here; send the picture as a data URL"
            raise ApiError("media_url_forbidden", message, param=images[0].where)
        found: dict[str, bytes] = {}

        async def one(image: ImagePart) -> None:
            try:
                with self.metrics.fetch_seconds.time():
                    data = await self.fetcher.fetch(image.url)
            except ApiError as error:
                self.metrics.fetch_failures.labels(error.code).inc()
                raise placed(error, image) from error
            reservation.reserve(len(data))
            self.metrics.fetched_bytes.inc(len(data))
            found[image.where] = data

        try:
            async with asyncio.TaskGroup() as tasks:
                for image in images:
                    tasks.create_task(one(image))
        except ExceptionGroup as group:
            raise next((e for e in group.exceptions if isinstance(e, ApiError)), group) from None
        return found

    def _see(self, image: ImagePart, fetched: bytes | None) -> Seen:
        try:
            data = data_urls.decode(image.url, max_bytes=self.rules.max_bytes) if fetched is None else fetched
            header = read_header(data, max_pixels=self.rules.max_pixels)
        except ApiError as error:
            raise placed(error, image) from error
        self.metrics.formats.labels(header.format).inc()
        self.metrics.pixels.inc(header.width * header.height)
        if fetched is not None or not _PLAIN_HEAD.fullmatch(image.url[: image.url.index(",")]):
            # It asks nobody for the picture then, and no parameter of the client's reaches it.
            image.holder[image.key] = data_urls.encode(data, MEDIA_TYPES[header.format])
        return Seen((header.width, header.height), blake3(data).digest(_HASH_BYTES), header.format)


def placed(error: ApiError, image: ImagePart) -> ApiError:
    """The same refusal, with the image's place."""
    return ApiError(error.code, f"{image.where}: {error.message}", param=image.where, retry_after=error.retry_after)
