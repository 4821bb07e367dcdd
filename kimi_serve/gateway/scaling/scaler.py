"""Scaled pictures, made once and kept for a while. Knows hashes and sizes; decodes nothing itself."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from blake3 import blake3

from kimi_serve.gateway.media import data_urls
from kimi_serve.gateway.scaling.pool import Job, Pool
from kimi_serve.gateway.scaling.worker import Size

_OVERHEAD: Final = 512  # bytes of a key and of what stands around a picture


class Key(NamedTuple):
    salt: str  # the tenant's
    hash: bytes  # of what the picture was
    wanted: Size


@dataclass(frozen=True, slots=True)
class Scaled:
    url: str  # a data URL
    hash: bytes  # of what is in it


class Cache:
    """What was used longest ago goes first. A tenant meets only what is his own: time tells nothing of others."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # bytes
        self._held: OrderedDict[Key, Scaled] = OrderedDict()
        self.size = 0

    def get(self, key: Key) -> Scaled | None:
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: Key, scaled: Scaled) -> None:
        before = self._held.pop(key, None)
        if before is not None:
            self.size -= _bytes(before)
        if _bytes(scaled) > self._limit:
            return
        self._held[key] = scaled
        self.size += _bytes(scaled)
        while self.size > self._limit:
            _, oldest = self._held.popitem(last=False)
            self.size -= _bytes(oldest)


@dataclass(frozen=True, slots=True)
class Scaler:
    pool: Pool
    cache: Cache

    async def make(self, key: Key, job: Job) -> Scaled:
        """ApiError: invalid_image, image_too_large."""
        result = await self.pool.scale(job)
        scaled = Scaled(data_urls.encode(result.data, result.media_type), blake3(result.data).digest())
        self.cache.put(key, scaled)
        return scaled


def _bytes(scaled: Scaled) -> int:
    return len(scaled.url) + _OVERHEAD
