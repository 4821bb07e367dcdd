"""Scaled pictures, made once and kept for a while. Knows hashes and sizes; decodes nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from blake3 import blake3

from kimi_serve.gateway.kept import Kept
from kimi_serve.gateway.media import data_urls
from kimi_serve.gateway.scaling.pool import Job, Pool
from kimi_serve.gateway.scaling.worker import Size

_OVERHEAD: Final = 512  # bytes of a key and of what stands around a picture


class Key(NamedTuple):
    salt: str  # the tenant's, who meets only what is his own
    hash: bytes  # of what the picture was
    wanted: Size


@dataclass(frozen=True, slots=True)
class Scaled:
    url: str  # a data URL
    hash: bytes  # of what is in it


Cache = Kept[Key, Scaled]


def cache(limit: int) -> Cache:
    return Kept(limit, lambda scaled: len(scaled.url) + _OVERHEAD)


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
