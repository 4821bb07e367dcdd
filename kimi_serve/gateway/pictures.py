"""The pictures of a request: fetched where they are remote, measured by their headers. Decodes no pixel."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.media import data_urls
from kimi_serve.gateway.media.fetch import Fetcher
from kimi_serve.gateway.media.headers import MEDIA_TYPES, read_header
from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.settings import Media
from kimi_serve.protocol.chat import ImagePart
from kimi_serve.protocol.errors import ApiError


@dataclass(frozen=True, slots=True)
class Seen:
    size: tuple[int, int]  # width, height, upright
    hash: bytes


@dataclass(frozen=True, slots=True)
class Eye:
    """Looks at pictures with one request's rules."""

    rules: Media
    fetcher: Fetcher
    metrics: Metrics

    async def look(self, images: Sequence[ImagePart], reservation: Reservation) -> tuple[list[Seen], bool]:
        """What every image is, in order; and whether one had to be written into the body."""
        if len(images) > self.rules.max_images:
            message = f"{len(images)} images are more than the {self.rules.max_images} that one prompt may hold"
            raise ApiError("too_many_images", message, param=images[self.rules.max_images].where)
        remote = [image for image in images if not data_urls.is_data_url(image.url)]
        fetched = await self._fetch(remote, reservation) if remote else {}
        before = [image.url for image in images]
        seen = [self._see(image, fetched.get(image.where)) for image in images]
        return seen, any(image.url is not url for image, url in zip(images, before, strict=True))

    async def _fetch(self, images: Sequence[ImagePart], reservation: Reservation) -> dict[str, bytes]:
        if not self.rules.allow_remote:
            message = f"{images[0].where}: URLs are not fetched here; send the picture as a data URL"
            raise ApiError("media_url_forbidden", message, param=images[0].where)
        found: dict[str, bytes] = {}

        async def one(image: ImagePart) -> None:
            try:
                data = await self.fetcher.fetch(image.url)
            except ApiError as error:
                raise _placed(error, image) from error
            reservation.reserve(len(data))
            self.metrics.fetched_bytes.inc(len(data))
            found[image.where] = data

        with self.metrics.fetch_seconds.time():
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
            raise _placed(error, image) from error
        if fetched is not None or not image.url.partition(",")[0].endswith(";base64"):
            # The one form that the engine reads; it asks nobody for the picture.
            image.holder[image.key] = data_urls.encode(data, MEDIA_TYPES[header.format])
        return Seen((header.width, header.height), blake3(data).digest(16))


def _placed(error: ApiError, image: ImagePart) -> ApiError:
    """The same refusal, with the image's place."""
    return ApiError(error.code, f"{image.where}: {error.message}", param=image.where, retry_after=error.retry_after)
