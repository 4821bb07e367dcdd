"""Files in a conversation become pictures and text, in their places. Knows parts, bytes and errors; no format's inside.

Called between parsing and measuring, for requests that have such parts. Behind it every rule on pictures holds for
pages and frames as for any other: cost, limits, names in engines' caches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.expansion import documents
from kimi_serve.gateway.expansion.kinds import Kind, kind_of
from kimi_serve.gateway.expansion.room import Room
from kimi_serve.gateway.expansion.workers import RefusedError, WorkerEndedError, Workers
from kimi_serve.gateway.media import data_urls
from kimi_serve.gateway.media.fetch import Fetcher, Wanted
from kimi_serve.gateway.metrics import Metrics
from kimi_serve.gateway.prompt_cost import Meter
from kimi_serve.gateway.settings import Settings
from kimi_serve.protocol.errors import ApiError
from kimi_serve.protocol.files import FilePart, Image

logger = logging.getLogger(__name__)

_CODES: Final = {
    ("document", "invalid"): "invalid_document",
    ("document", "encrypted"): "encrypted_document",
    ("document", "too_large"): "document_too_large",
}
_ENDED: Final = {  # by the reason for which a process ended: kind of refusal, and what to say
    "time": ("too_large", "takes longer to read than it may"),
    "memory": ("too_large", "takes more memory to read than it may"),
    "crash": ("invalid", "cannot be read to the end: it is damaged, or takes more memory than it may"),
}
Shown = list[str | Image]


@dataclass(frozen=True, slots=True)
class Expander:
    settings: Settings
    fetcher: Fetcher
    workers: Workers
    meter: Meter
    metrics: Metrics

    async def expand(
        self, files: Sequence[FilePart], images: int, reservation: Reservation, context: int | None
    ) -> dict[int, str]:
        """Put what the files show in their places, and say of each new part by its id where its file stood.

        `images`: those that the prompt has besides; `context`: the model's limit, where the prompt is to fit it.
        """
        asked = [documents.read_options(file) for file in files]
        room = Room(self.meter, self.settings.media.max_images - images, context)
        found = await self._bytes(files, reservation)
        places: dict[int, str] = {}
        for file, options, data in zip(files, asked, found, strict=True):
            try:
                shown = await self._shown(file, options, data, room, reservation)
            except ApiError as error:
                raise _placed(error, file) from error
            for part in file.become(shown):
                # An Anthropic image is known by its source, which its part holds.
                places |= dict.fromkeys((id(part), id(part.get("source"))), file.where)
        return places

    async def _bytes(self, files: Sequence[FilePart], reservation: Reservation) -> list[bytes]:
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self._bytes_of(file, reservation)) for file in files]
        except ExceptionGroup as group:
            raise next((e for e in group.exceptions if isinstance(e, ApiError)), group) from None
        return [task.result() for task in running]

    async def _bytes_of(self, file: FilePart, reservation: Reservation) -> bytes:
        limit = max(self.settings.media.max_bytes, self.settings.documents.max_bytes)
        try:
            if data_urls.is_data_url(file.url):
                return data_urls.decode(file.url, max_bytes=limit)
            return await self._fetch(file, limit, reservation)
        except ApiError as error:
            if error.code == "image_too_large":
                error = _too_large("document", limit)
            raise _placed(error, file) from error

    async def _fetch(self, file: FilePart, limit: int, reservation: Reservation) -> bytes:
        if not self.settings.media.allow_remote:
            raise ApiError("media_url_forbidden", "URLs are not fetched here; send the file as a data URL")
        try:
            with self.metrics.fetch_seconds.time():
                data = await self.fetcher.fetch(file.url, Wanted("*/*", limit, self.settings.media.file_timeout_s))
        except ApiError as error:
            self.metrics.fetch_failures.labels(error.code).inc()
            raise
        reservation.reserve(len(data))
        self.metrics.fetched_bytes.inc(len(data))
        return data

    async def _shown(
        self, file: FilePart, options: documents.Asked, data: bytes, room: Room, reservation: Reservation
    ) -> Shown:
        kind = kind_of(data)
        if kind == "picture":
            is_here = data_urls.is_data_url(file.url)
            return [Image(file.url if is_here else data_urls.encode(data, "application/octet-stream"))]
        if not self.settings.workers.processes:
            raise ApiError("unsupported_media_type", f"a {kind} is not taken here: send its pictures instead")
        if len(data) > self.settings.documents.max_bytes:
            raise _too_large(kind, self.settings.documents.max_bytes)
        began = time.monotonic()
        try:
            shown = await self._read(options, data, room, reservation)
        except RefusedError as error:
            raise _refused(kind, error.kind, error.why) from error
        except WorkerEndedError as error:
            self.metrics.expansion.ended.labels(error.reason).inc()
            logger.warning("a file's process ended early", extra={"kind": kind, "reason": error.reason})
            raise _refused(kind, *_ENDED[error.reason]) from error
        finally:
            self.metrics.expansion.seconds.labels(kind).observe(time.monotonic() - began)
        self.metrics.expansion.files.labels(kind).inc()
        self.metrics.expansion.images.labels(kind).inc(sum(isinstance(one, Image) for one in shown))
        return shown

    async def _read(self, options: documents.Asked, data: bytes, room: Room, reservation: Reservation) -> Shown:
        rules, most = self.settings.documents, self.settings.body.max_bytes
        limits = documents.limits(rules, self.settings.workers.memory_bytes, most)
        shown: Shown = []
        async with self.workers.over(documents.READER, limits) as worker:
            async for one in documents.show(worker, limits, data, options, rules, self.meter, room):
                reservation.reserve(len(one.url) if isinstance(one, Image) else len(one))
                shown.append(one)
        return shown


def _too_large(kind: Kind, limit: int) -> ApiError:
    return ApiError(f"{kind}_too_large", f"its bytes exceed the limit of {limit}; send a smaller {kind}")


def _refused(kind: Kind, refusal: str, why: str) -> ApiError:
    """A reader says `option` where the file is sound and what was asked of it is not."""
    return ApiError(_CODES.get((kind, refusal), "invalid_value"), why)


def _placed(error: ApiError, file: FilePart) -> ApiError:
    return ApiError(error.code, f"{file.where}: {error.message}", param=file.where, retry_after=error.retry_after)
