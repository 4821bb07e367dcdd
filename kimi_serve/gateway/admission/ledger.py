"""Bytes of bodies in flight, counted from the first one. Knows tenants and sums; never a body."""

import time
from collections.abc import Callable
from typing import Self

from kimi_serve.gateway.admission.drain_rate import DrainRate
from kimi_serve.protocol.errors import ApiError


class BytesLedger:
    """Two bounds, on all bodies together and on those of one tenant. What is refused is not counted."""

    def __init__(self, limit: int, tenant_limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._tenant_limit = limit, tenant_limit
        self._drain = DrainRate(clock)
        self._total = 0
        self._by_tenant: dict[str, int] = {}

    def body(self, tenant: str) -> "Reservation":
        """A reservation that starts at nothing, grows as bytes arrive, and is given back at the end of its block."""
        return Reservation(self, tenant)

    @property
    def total(self) -> int:
        return self._total

    def snapshot(self) -> dict[str, int]:
        """Bytes in flight by tenant; tenants without any are not in it."""
        return dict(self._by_tenant)

    def _check(self, tenant: str, held: int, size: int) -> None:
        allowed = min(self._limit, self._tenant_limit)
        if held + size > allowed:
            # Not even alone would it fit: to come back later would not help.
            raise ApiError("body_too_large", f"The body exceeds {allowed} bytes; send fewer or smaller images.")
        over = self._by_tenant.get(tenant, 0) + size - self._tenant_limit
        if over > 0:
            raise ApiError(
                "tenant_bytes_in_flight",
                f"This key's bodies in flight would exceed {self._tenant_limit} bytes; send fewer at a time.",
                retry_after=self._drain.seconds_for(over),
            )
        over = self._total + size - self._limit
        if over > 0:
            raise ApiError(
                "bytes_in_flight",
                "The bodies in flight fill the gateway's memory; retry later.",
                retry_after=self._drain.seconds_for(over),
            )

    def _add(self, tenant: str, size: int) -> None:
        self._total += size
        held = self._by_tenant.get(tenant, 0) + size
        if held:
            self._by_tenant[tenant] = held
        else:
            self._by_tenant.pop(tenant, None)
        if size < 0:
            self._drain.record(-size)
        self._drain.set_busy(self._total > 0)


class Reservation:
    """What one body holds. `held` is exact at every moment."""

    def __init__(self, ledger: BytesLedger, tenant: str) -> None:
        self._ledger, self._tenant = ledger, tenant
        self.held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release(self.held)

    def reserve(self, size: int) -> None:
        """Call before reading or keeping `size` more bytes: a refusal leaves what was held."""
        assert size >= 0
        self._ledger._check(self._tenant, self.held, size)
        self._ledger._add(self._tenant, size)
        self.held += size

    def release(self, size: int) -> None:
        """Bytes that are no longer in memory, before the end of the body's life."""
        assert 0 <= size <= self.held
        self._ledger._add(self._tenant, -size)
        self.held -= size
