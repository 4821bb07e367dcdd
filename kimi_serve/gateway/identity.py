"""Who sends a request. Knows keys and tenants; never a body. Without a store of keys everybody is one tenant."""

from __future__ import annotations

import hmac
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from kimi_serve.errors import ConfigError
from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.key_metrics import Standing
from kimi_serve.gateway.priority import Priority
from kimi_serve.gateway.settings import Keys
from kimi_serve.gateway.tenants.charge import Charge, charge
from kimi_serve.gateway.tenants.counters import Counters, LocalCounters
from kimi_serve.gateway.tenants.fallback import FallbackCounters
from kimi_serve.gateway.tenants.keys import Key, Scope, require_model, require_scope
from kimi_serve.gateway.tenants.redis_counters import RedisCounters
from kimi_serve.gateway.tenants.resp import Redis
from kimi_serve.gateway.tenants.salt import cache_salt
from kimi_serve.gateway.tenants.spending import SavedSpending
from kimi_serve.gateway.tenants.stores import KeyStore
from kimi_serve.gateway.tenants.stores.environment import EnvironmentKeys
from kimi_serve.gateway.tenants.stores.file import FileKeys
from kimi_serve.gateway.tenants.stores.postgres import PostgresKeys
from kimi_serve.gateway.tenants.stores.sqlite import SqliteKeys
from kimi_serve.gateway.tenants.verify import Pace, Verifier
from kimi_serve.protocol.errors import ApiError

ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Caller:
    tenant: str
    priority: Priority
    key: Key | None
    salt: str | None  # of the engine's prefix cache; None where all callers are one tenant

    def require(self, scope: Scope) -> None:
        if self.key is not None:
            require_scope(self.key, scope)

    def require_model(self, model: str) -> None:
        if self.key is not None:
            require_model(self.key, model)


@dataclass(frozen=True, slots=True)
class Shared:
    """Counters in Redis, and what takes their place while it is away."""

    counters: RedisCounters
    fallback: FallbackCounters


class Identity:
    def __init__(
        self,
        verifier: Verifier | None,
        counters: Counters,
        salt_secret: bytes,
        single: bytes | None = None,
        shared: Shared | None = None,
    ) -> None:
        self._verifier, self._counters, self._secret, self._single = verifier, counters, salt_secret, single
        self._shared = shared

    @classmethod
    @asynccontextmanager
    async def opened(cls, keys: Keys) -> AsyncIterator[Identity]:
        async with AsyncExitStack() as stack:
            store = await _store(keys, stack)
            counters, shared = await _counters(keys, store, stack)
            pace = Pace(outage=keys.outage_s)
            verifier = None if store is None else await stack.enter_async_context(Verifier(store, pace))
            single = None if keys.single is None else keys.single.get_secret_value().encode()
            yield cls(verifier, counters, _salt_secret(keys, store is not None), single, shared)

    def standing(self) -> Standing:
        """How keys are looked up and limits counted at this moment."""
        verifier, shared = self._verifier, self._shared
        return Standing(
            is_store_up=verifier is None or not verifier.is_store_away,
            stale=0 if verifier is None else verifier.stale,
            is_shared=shared is not None and not shared.fallback.is_falling_back,
            fallbacks=0 if shared is None else shared.fallback.fallbacks,
            unsent=0 if shared is None else shared.counters.unsent,
            unsettled=0 if shared is None else shared.counters.unsettled,
        )

    async def caller(self, authorization: str | None, api_key: str | None) -> Caller:
        """From `Authorization: Bearer KEY`, or Anthropic's `x-api-key: KEY`."""
        scheme, _, presented = (authorization or "").partition(" ")
        if authorization and scheme.lower() != "bearer":
            raise ApiError("invalid_key", "Authorization: expected `Bearer KEY`")
        presented = presented.strip() or api_key or ""
        if self._single is not None:
            _require_single(presented, self._single)
        if self._verifier is None:
            return Caller(ANONYMOUS, "normal", None, None)
        key = await self._verifier.verify(presented)
        return Caller(key.tenant, key.priority, key, cache_salt(key.tenant, self._secret))

    async def caller_with(self, key_id: str | None) -> Caller:
        """Who once sent this key, if it is still good; None: where there were no keys."""
        if self._verifier is None or key_id is None:
            if key_id is not None or self._verifier is not None:
                raise ApiError("invalid_key", "this server's keys are not those that the batch was made with")
            return Caller(ANONYMOUS, "normal", None, None)
        key = await self._verifier.by_id(key_id)
        return Caller(key.tenant, key.priority, key, cache_salt(key.tenant, self._secret))

    async def charge(self, caller: Caller, estimate: Cost) -> Charge | None:
        return None if caller.key is None else await charge(self._counters, caller.key, estimate)


def _require_single(presented: str, single: bytes) -> None:
    if not presented:
        raise ApiError("missing_key", "no API key was sent: send the header `Authorization: Bearer KEY`")
    if not hmac.compare_digest(presented.encode("utf-8", "surrogatepass"), single):
        raise ApiError("invalid_key", "the API key is not the one that this server was started with")


async def _store(keys: Keys, stack: AsyncExitStack) -> KeyStore | None:
    chosen = [name for name in ("single", "file", "sqlite", "postgres", "environment") if getattr(keys, name)]
    if len(chosen) > 1:
        raise ConfigError(f"keys: {' and '.join(chosen)} are set; expected one place that holds the keys")
    if keys.file is not None:
        return FileKeys(keys.file)
    if keys.sqlite is not None:
        return await stack.enter_async_context(SqliteKeys(keys.sqlite))
    if keys.postgres is not None:
        url = keys.postgres.get_secret_value()
        return await stack.enter_async_context(PostgresKeys(url, timeout=keys.postgres_timeout_s))
    return EnvironmentKeys() if keys.environment else None


async def _counters(keys: Keys, store: KeyStore | None, stack: AsyncExitStack) -> tuple[Counters, Shared | None]:
    """Together in Redis, or here; then budgets are kept where the keys are, if that is a database."""
    if keys.redis is not None:
        redis = Redis.from_url(keys.redis.get_secret_value(), keys.redis_timeout_s)
        shared = await stack.enter_async_context(RedisCounters(redis, lease=keys.redis_lease_s))
        fallback = FallbackCounters(shared, LocalCounters())
        return fallback, Shared(shared, fallback)
    if isinstance(store, SqliteKeys | PostgresKeys):
        spending = await stack.enter_async_context(SavedSpending(store))
        return LocalCounters(spending=spending), None
    return LocalCounters(), None


def _salt_secret(keys: Keys, has_store: bool) -> bytes:
    """Random where none is set: right for one gateway, while several would split one tenant's cache."""
    if keys.salt_secret is not None:
        return keys.salt_secret.get_secret_value().encode()
    if has_store and (keys.redis is not None or keys.postgres is not None):
        raise ConfigError("keys.salt_secret: not set; several gateways that share a Redis or PostgreSQL need the same")
    return os.urandom(32)
