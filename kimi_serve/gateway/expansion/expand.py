"""Files in a conversation become pictures and text, in their places. Knows parts, bytes and errors; no format's inside.

Called between parsing and measuring, for requests that have such parts. Behind it every rule on pictures holds for
pages and frames as for any other: cost, limits, names in engines' caches.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, NamedTuple

from blake3 import blake3

from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.expansion import documents, videos
from kimi_serve.gateway.expansion.kinds import Kind, kind_of, video_format
from kimi_serve.gateway.expansion.room import Room, Taken
from kimi_serve.gateway.expansion.workers import RefusedError, WorkerEndedError, Workers
from kimi_serve.gateway.kept import Kept
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
    ("video", "invalid"): "invalid_video",
    ("video", "too_large"): "video_too_large",
}
_ENDED: Final = {  # by the reason for which a process ended: kind of refusal, and what to say
    "time": ("too_large", "takes longer to read than it may"),
    "memory": ("too_large", "takes more memory to read than it may"),
    "crash": ("invalid", "cannot be read to the end: it is damaged, or takes more memory than it may"),
}
_OVERHEAD: Final = 512  # bytes of a key and of what stands around the parts
Shown = list[str | Image]


@dataclass(frozen=True, slots=True)
class _Job:
    file: FilePart
    pages: documents.Asked
    frames: videos.Asked


class Key(NamedTuple):
    salt: str  # the tenant's, who meets only what is his own
    hash: bytes  # of the file
    asked: str  # of it


@dataclass(frozen=True, slots=True)
class Made:
    shown: Shown
    taken: Taken


Cache = Kept[Key, Made]


def cache(limit: int) -> Cache:
    return Kept(limit, lambda made: _OVERHEAD + sum(map(_length, made.shown)))


@dataclass(frozen=True, slots=True)
class Expander:
    settings: Settings
    fetcher: Fetcher
    workers: Workers
    meter: Meter
    metrics: Metrics
    cache: Cache

    async def expand(
        self, files: Sequence[FilePart], images: int, reservation: Reservation, context: int | None, salt: str
    ) -> dict[int, str]:
        """Put what the files show in their places, and say of each new part by its id where its file stood.

        `images`: those that the prompt has besides; `context`: the model's limit, where the prompt is to fit it.
        """
        rules = self.settings.videos
        jobs = [_Job(file, documents.read_options(file), videos.read_options(file, rules)) for file in files]
        room = Room(self.meter, self.settings.media.max_images - images, context)
        found = await self._bytes(files, reservation)
        places: dict[int, str] = {}
        for job, data in zip(jobs, found, strict=True):
            try:
                shown = await self._shown(job, data, room, reservation, salt)
            except ApiError as error:
                raise _placed(error, job.file) from error
            for part in job.file.become(shown):
                # An Anthropic image is known by its source, which its part holds.
                places |= dict.fromkeys((id(part), id(part.get("source"))), job.file.where)
        return places

    async def _bytes(self, files: Sequence[FilePart], reservation: Reservation) -> list[bytes]:
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self._bytes_of(file, reservation)) for file in files]
        except ExceptionGroup as group:
            raise next((e for e in group.exceptions if isinstance(e, ApiError)), group) from None
        return [task.result() for task in running]

    async def _bytes_of(self, file: FilePart, reservation: Reservation) -> bytes:
        """Within the limit of the largest kind: which it is, only the bytes say."""
        limit = max(self.settings.media.max_bytes, self.settings.documents.max_bytes, self.settings.videos.max_bytes)
        try:
            if data_urls.is_data_url(file.url):
                return data_urls.decode(file.url, max_bytes=limit)
            return await self._fetch(file, limit, reservation)
        except ApiError as error:
            if error.code == "image_too_large":
                error = _too_large("video" if file.is_video else "document", limit)
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

    async def _shown(self, job: _Job, data: bytes, room: Room, reservation: Reservation, salt: str) -> Shown:
        kind = kind_of(data, is_video=job.file.is_video)
        if kind == "picture":
            return [self._picture(job.file, data)]
        if not self.settings.workers.processes:
            raise ApiError("unsupported_media_type", f"a {kind} is not taken here: send its pictures instead")
        rules = self.settings.documents if kind == "document" else self.settings.videos
        if len(data) > rules.max_bytes:
            raise _too_large(kind, rules.max_bytes)
        hash = await asyncio.to_thread(lambda: blake3(data).digest())  # a video has 100 MB
        key = Key(salt, hash, repr(job.pages if kind == "document" else job.frames))
        if (made := self.cache.get(key)) is not None:
            room.take(*made.taken)
            reservation.reserve(sum(map(_length, made.shown)))
            self.metrics.expansion.kept.labels(kind).inc()
            return made.shown
        began = time.monotonic()
        try:
            shown = await self._read(kind, job, data, room, reservation)
        except RefusedError as error:
            raise _refused(kind, error.kind, error.why) from error
        except WorkerEndedError as error:
            self.metrics.expansion.ended.labels(error.reason).inc()
            logger.warning("a file's process ended early", extra={"kind": kind, "reason": error.reason})
            raise _refused(kind, *_ENDED[error.reason]) from error
        finally:
            self.metrics.expansion.seconds.labels(kind).observe(time.monotonic() - began)
        assert room.last is not None, "a reader asks before it draws"
        self.cache.put(key, Made(shown, room.last))
        self.metrics.expansion.files.labels(kind).inc()
        self.metrics.expansion.images.labels(kind).inc(sum(isinstance(one, Image) for one in shown))
        return shown

    def _picture(self, file: FilePart, data: bytes) -> Image:
        if file.is_video:
            raise ApiError("unsupported_media_type", "the bytes are no video: supported are MP4, MOV, WebM and GIF")
        is_here = data_urls.is_data_url(file.url)
        return Image(file.url if is_here else data_urls.encode(data, "application/octet-stream"))

    async def _read(self, kind: Kind, job: _Job, data: bytes, room: Room, reservation: Reservation) -> Shown:
        shown: Shown = []
        async with aclosing(self._parts(kind, job, data, room)) as parts:
            async for one in parts:
                reservation.reserve(_length(one))
                shown.append(one)
        return shown

    async def _parts(self, kind: Kind, job: _Job, data: bytes, room: Room) -> AsyncGenerator[str | Image, None]:
        memory, most = self.settings.workers.memory_bytes, self.settings.body.max_bytes
        if kind == "document":
            pdf = self.settings.documents
            limits = documents.limits(pdf, memory, most)
            async with self.workers.over(documents.READER, limits) as worker:
                async for one in documents.show(worker, limits, data, job.pages, pdf, self.meter, room):
                    yield one
            return
        rules = self.settings.videos
        limits = videos.limits(rules, memory, most)
        name = video_format(data)
        assert name is not None
        async with self.workers.over(videos.READER, limits) as worker:
            async for one in videos.show(worker, limits, (name, data), job.frames, rules, self.meter, room):
                yield one


def _length(one: str | Image) -> int:
    return len(one.url) if isinstance(one, Image) else len(one)


def _too_large(kind: Kind, limit: int) -> ApiError:
    return ApiError(f"{kind}_too_large", f"its bytes exceed the limit of {limit}; send a smaller {kind}")


def _refused(kind: Kind, refusal: str, why: str) -> ApiError:
    """A reader says `option` where the file is sound and what was asked of it is not."""
    return ApiError(_CODES.get((kind, refusal), "invalid_value"), why)


def _placed(error: ApiError, file: FilePart) -> ApiError:
    return ApiError(error.code, f"{file.where}: {error.message}", param=file.where, retry_after=error.retry_after)
