"""From what a client sent to its key. Knows argon2 and how to need it once; knows no HTTP header and no limit.

A key that was checked is remembered by a digest keyed with random bytes of this process, so the next request costs
microseconds. Whether it is expired is asked at each use; its record is read again when it is older than `refresh`
seconds, and that is how long a revocation takes at most.
"""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from types import TracebackType
from typing import Final, Self, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from kimi_serve.gateway.tenants.errors import TenantsError
from kimi_serve.gateway.tenants.keys import HASHER, Key, PlainKey, parse
from kimi_serve.gateway.tenants.stores import KeyStore
from kimi_serve.protocol.errors import ApiError

T = TypeVar("T")
logger = logging.getLogger(__name__)

_UNAVAILABLE: Final = "The store of keys does not answer, and this key was not checked lately: try again in a second."
_INVALID: Final = "The API key is unknown, expired or revoked: ask the operator of this server for a new one."


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is remembered and how much is done at once; seconds and counts."""

    refresh: float = 5.0  # a revocation, a changed record or a new key takes effect within this
    outage: float = 600.0  # so much longer a key that was checked goes on while the store does not answer
    retry: float = 1.0  # when those whose key cannot be looked up may come back
    remembered: float = 3600.0  # then a key is checked by argon2 again
    most_keys: int = 10_000
    hashing: int = 2  # argon2 runs at once
    waiting: int = 64  # keys whose check runs or waits; more are told to come back


@dataclass(slots=True)
class _Known:
    key: Key
    since: float
    read: float  # when its record was


class Verifier:
    """`async with Verifier(store) as verifier: key = await verifier.verify(text)`."""

    def __init__(
        self,
        store: KeyStore,
        pace: Pace = Pace(),
        *,
        hasher: PasswordHasher = HASHER,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._pace, self._hasher, self._clock, self._wall = store, pace, hasher, clock, wall
        self._digest_key = secrets.token_bytes(64)
        # Unknown ids are checked against a hash of nothing anybody holds, so they take as long as known ones.
        self._nobody = hasher.hash(secrets.token_urlsafe(32))
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._wrong: OrderedDict[bytes, float] = OrderedDict()  # until when
        self._checks: dict[bytes, asyncio.Task[Key | None]] = {}
        # Its size bounds argon2 even where those who asked are gone: a thread cannot be cancelled.
        self.is_store_away = False
        self.stale = 0  # requests let in by a record that could not be read again
        self._threads = ThreadPoolExecutor(pace.hashing, thread_name_prefix="argon2")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        checks = list(self._checks.values())
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)
        self._threads.shutdown(cancel_futures=True)

    async def verify(self, presented: str | None) -> Key:
        """Raises ApiError missing_key or invalid_key; queue_full where too many keys wait for their check;
        keys_unavailable where the store does not answer and the key is not known from before.
        """
        if not presented:
            raise ApiError("missing_key", "No API key was sent: send the header `Authorization: Bearer ksk_...`.")
        digest = blake2b(presented.encode("utf-8", "surrogatepass"), digest_size=32, key=self._digest_key).digest()
        key = self._remembered(digest) or await self._read_again(digest) or await self._checked(digest, presented)
        if key is None or not key.is_usable(datetime.fromtimestamp(self._wall(), UTC)):
            raise ApiError("invalid_key", _INVALID)
        return key

    async def by_id(self, key_id: str) -> Key:
        """A key that was verified when it was sent, from its record of now. Raises ApiError as verify does."""
        key = await self._record(key_id)
        if key is None or not key.is_usable(datetime.fromtimestamp(self._wall(), UTC)):
            raise ApiError("invalid_key", _INVALID)
        return key

    def _remembered(self, digest: bytes) -> Key | None:
        known = self._known.get(digest)
        if known is None or self._clock() - known.read >= self._pace.refresh:
            return None
        self._known.move_to_end(digest)
        return known.key

    async def _read_again(self, digest: bytes) -> Key | None:
        """A key that was checked before, from its record of now; None where it needs a check."""
        known = self._known.get(digest)
        if known is None:
            return None
        now = self._clock()
        try:
            record = await self._record(known.key.id)
        except ApiError:
            if now - known.read >= self._pace.refresh + self._pace.outage:
                raise
            self.stale += 1
            return known.key
        is_due = now - known.since >= self._pace.remembered
        if is_due or record is None or record.secret_hash != known.key.secret_hash:
            self._known.pop(digest, None)
            return None
        known.key, known.read = record, now
        return record

    async def _record(self, key_id: str) -> Key | None:
        try:
            record = await self._store.get(key_id)
        except TenantsError as error:
            if not self.is_store_away:
                logger.warning("a key's record cannot be read", extra={"key": key_id, "reason": str(error)})
            self.is_store_away = True
            raise ApiError("keys_unavailable", _UNAVAILABLE, retry_after=self._pace.retry) from None
        self.is_store_away = False
        return record

    async def _checked(self, digest: bytes, presented: str) -> Key | None:
        plain = parse(presented)
        if plain is None or self._wrong.get(digest, 0.0) > self._clock():
            return None
        check = self._checks.get(digest)
        if check is None:
            if len(self._checks) >= self._pace.waiting:
                raise ApiError(
                    "queue_full", "Too many new keys are being checked: try again in a second.", retry_after=1
                )
            check = self._checks[digest] = asyncio.create_task(self._check(digest, plain))
            check.add_done_callback(partial(self._end_check, digest))
        # Shielded: others may wait for the same check when the client who began it leaves.
        return await asyncio.shield(check)

    async def _check(self, digest: bytes, plain: PlainKey) -> Key | None:
        now = self._clock()
        record = await self._record(plain.id)
        stored = self._nobody if record is None else record.secret_hash
        loop = asyncio.get_running_loop()
        matches = await loop.run_in_executor(self._threads, self._matches, stored, plain)
        if record is None or not matches:
            _remember(self._wrong, digest, now + self._pace.refresh, self._pace.most_keys)
            return None
        _remember(self._known, digest, _Known(record, since=now, read=now), self._pace.most_keys)
        return record

    def _matches(self, stored: str, plain: PlainKey) -> bool:
        try:
            return self._hasher.verify(stored, plain.secret)
        except (VerificationError, InvalidHashError):
            return False

    def _end_check(self, digest: bytes, check: asyncio.Task[Key | None]) -> None:
        del self._checks[digest]
        if not check.cancelled():
            check.exception()  # whoever still waits raises it; if nobody does, it is not news


def _remember(cache: OrderedDict[bytes, T], digest: bytes, value: T, most: int) -> None:
    cache[digest] = value
    while len(cache) > most:
        cache.popitem(last=False)
