"""Values that took work to make, kept for a while within a number of bytes. Knows sizes; never what a value is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Kept(Generic[K, V]):
    """What was used longest ago goes first. Tenants share one, and are apart by their keys: time tells nothing."""

    def __init__(self, limit: int, size_of: Callable[[V], int]) -> None:
        self._limit, self._size_of = limit, size_of  # both in bytes
        self._held: OrderedDict[K, V] = OrderedDict()
        self.size = 0

    def get(self, key: K) -> V | None:
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: K, value: V) -> None:
        before = self._held.pop(key, None)
        if before is not None:
            self.size -= self._size_of(before)
        if self._size_of(value) > self._limit:
            return
        self._held[key] = value
        self.size += self._size_of(value)
        while self.size > self._limit:
            _, oldest = self._held.popitem(last=False)
            self.size -= self._size_of(oldest)
