"""What accounts spent of their months, and where that outlives the process. Knows months and sums; no limit.

A month is a part of each name: a wall clock that jumps into the next one and back finds what it left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from kimi_serve.gateway.tenants.errors import TenantsError

Amounts = Mapping[tuple[str, str], int]  # tokens by account and month

logger = logging.getLogger(__name__)


class SpendingStore(Protocol):
    async def spend(self, amounts: Amounts) -> Amounts:
        """Add to what is kept, all or nothing; the sums after that. Nothing (0) may be added. Raises TenantsError."""


class Spending:
    """In this process alone: a restart begins anew."""

    def __init__(self) -> None:
        self._here: dict[tuple[str, str], int] = {}

    async def know(self, account: str, month: str) -> None:
        """Before `of` is asked for an account that has a budget."""

    def of(self, account: str, month: str) -> int:
        return self._here.get((account, month), 0)

    def add(self, account: str, month: str, tokens: int) -> None:
        name = account, month
        self._here[name] = self._here.get(name, 0) + tokens


class SavedSpending(Spending):
    """Kept in a store, together with what other gateways spent.

    `every` seconds all that changed is sent in one go, which also tells what the others spent meanwhile: so much of a
    budget may be exceeded, and so much is lost with a gateway that is killed. What cannot be sent is sent later.
    """

    def __init__(self, store: SpendingStore, every: float = 1.0) -> None:
        super().__init__()
        self._store, self._every = store, every
        self._kept: dict[tuple[str, str], int] = {}  # by the store's last word
        self._sent: Amounts = {}  # on its way
        self._is_late = False
        self._closing = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._sending = asyncio.create_task(self._send_often())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._closing.set()
        await asyncio.wait([self._sending])
        await self.save()
        if lost := sum(map(abs, self._here.values())):
            logger.error("what was spent could not be saved", extra={"tokens": lost})

    async def know(self, account: str, month: str) -> None:
        """Where the store does not say, what is known here has to do."""
        name = account, month
        self._here.setdefault(name, 0)  # so that the next save asks what others spent
        if name not in self._kept:
            try:
                self._kept |= await self._store.spend({name: 0})
            except TenantsError as error:
                logger.warning("a budget is counted from what is known here", extra={"reason": str(error)})

    def of(self, account: str, month: str) -> int:
        name = account, month
        return self._kept.get(name, 0) + self._sent.get(name, 0) + self._here.get(name, 0)

    async def save(self) -> bool:
        if not self._here:
            return True
        self._sent, self._here = self._here, {}
        try:
            self._kept |= await self._store.spend(self._sent)
        except TenantsError as error:
            for (account, month), tokens in self._sent.items():
                self.add(account, month, tokens)
            if not self._is_late:
                logger.warning("what was spent is saved later", extra={"reason": str(error)})
            self._is_late = True
            return False
        finally:
            self._sent = {}
        self._is_late = False
        return True

    async def _send_often(self) -> None:
        while not self._closing.is_set():
            try:
                await asyncio.wait_for(self._closing.wait(), self._every)
            except TimeoutError:
                await self.save()
