"""Slots on the engines, and the line in front of them. Knows costs, tenants and deadlines; never a body or a replica.

A request that finds no room waits in the fair queue until a slot is free, its deadline passes, or its client leaves.
The one at the head waits for room and is not overtaken by smaller ones of its class, so large requests are served too.
Who would wait longer than somebody has patience for is told so at once: an answer that comes too late takes an engine's
time from one that could come in time. The first in a line may always wait: so engines never lack work, and how fast the
line moves stays known.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from kimi_serve.gateway.admission.drain_rate import LONGEST_S, DrainRate
from kimi_serve.gateway.admission.fair_queue import FairQueue, Load, Ticket
from kimi_serve.gateway.admission.pace import Pace
from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.priority import AWAITED, PRIORITIES, Priority
from kimi_serve.protocol.errors import ApiError


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of all ready replicas together. A request that costs more than `cost` runs alone."""

    requests: int
    cost: int  # in the unit of Cost.weight


@dataclass(frozen=True, slots=True)
class Bounds:
    """On the line, not on the engines. `quantum` is the fair queue's: a turn should be shorter than patience."""

    waiting: int = 10_000
    waiting_per_tenant: int = 1_000
    patience_s: float = 1.0  # of the classes that somebody waits for
    quantum: int = 2048


@dataclass(frozen=True, slots=True)
class Snapshot:
    """For metrics. Tenants without anything outstanding or waiting are not in it."""

    capacity: Capacity
    waiting: Mapping[Priority, int]
    waiting_cost: int
    oldest_s: Mapping[Priority, float]
    outstanding: Load
    outstanding_by_tenant: Mapping[str, Load]
    cost_per_s: float | None
    is_draining: bool


_NO_LOAD: Final = Load()


class Admission:
    def __init__(
        self, capacity: Capacity, bounds: Bounds | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity, self._bounds, self._clock = capacity, bounds or Bounds(), clock
        self._queue: FairQueue[_Waiter] = FairQueue(self._bounds.quantum)
        self._drain = DrainRate(clock)
        self._paces = {priority: Pace(clock) for priority in PRIORITIES}
        self._outstanding = Load()
        self._by_tenant: dict[str, Load] = {}
        self._is_draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    def slot(
        self,
        tenant: str,
        cost: Cost,
        priority: Priority = "normal",
        deadline_s: float = 60.0,
        *,
        arrived: float | None = None,
    ) -> "Slot":
        """`async with` waits for room, at most `deadline_s` after `arrived` (a reading of the clock; None: now).

        Raises ApiError: draining, queue_timeout, tenant_queue_full, queue_full. The last two at once, also where the
        measured pace of its line lets it expect to wait longer than it may.
        """
        return Slot(self, tenant, cost.weight, priority, deadline_s, self._clock() if arrived is None else arrived)

    def set_capacity(self, capacity: Capacity) -> None:
        """When replicas come or go. Less than what is outstanding ends nothing: the line waits."""
        self._capacity = capacity
        self._pump()

    def drain(self, *, refuse_waiting: bool) -> None:
        """From now on no one enters. Those in line are refused too, or keep their place."""
        self._is_draining = True
        if refuse_waiting:
            for ticket in self._queue.tickets():
                self._refuse(ticket, _draining())
            self._note_empty()

    async def emptied(self) -> None:
        """Returns when nothing waits and nothing is outstanding."""
        await self._empty.wait()

    def snapshot(self) -> Snapshot:
        now = self._clock()
        oldest = {priority: self._queue.oldest(priority) for priority in PRIORITIES}
        return Snapshot(
            capacity=self._capacity,
            waiting={priority: self._queue.waiting(priority) for priority in PRIORITIES},
            waiting_cost=self._queue.load.cost,
            oldest_s={
                name: max(0.0, now - ticket.item.slot.arrived) if ticket else 0.0 for name, ticket in oldest.items()
            },
            outstanding=self._outstanding,
            outstanding_by_tenant=dict(self._by_tenant),
            cost_per_s=self._drain.rate(),
            is_draining=self._is_draining,
        )

    async def _enter(self, slot: "Slot", priority: Priority, deadline_s: float) -> None:
        if self._is_draining:
            raise _draining()
        left_s = slot.arrived + deadline_s - self._clock()
        if left_s <= 0:
            raise self._timeout()
        if not self._queue and self._has_room(slot.weight):
            self._grant(slot)
            return
        self._check_bounds(slot.tenant)
        self._check_wait(slot, priority, left_s)
        await self._wait(slot, priority, left_s)

    def _check_bounds(self, tenant: str) -> None:
        own = self._queue.tenant(tenant)
        if own.requests >= self._bounds.waiting_per_tenant:
            # Its line drains at its share of the rate; were the others' lines shorter, at more.
            ahead = min(self._queue.load.cost, own.cost * self._queue.tenants())
            message = f"{own.requests} requests of this key are waiting; send fewer at a time."
            raise ApiError("tenant_queue_full", message, retry_after=self._drain.seconds_for(ahead))
        if len(self._queue) >= self._bounds.waiting:
            message = f"{len(self._queue)} requests are waiting; retry later."
            raise ApiError("queue_full", message, retry_after=self._drain.seconds_for(self._queue.load.cost))

    def _check_wait(self, slot: "Slot", priority: Priority, left_s: float) -> None:
        allowed_s = min(left_s, self._bounds.patience_s) if priority in AWAITED else left_s
        ahead = self._queue.ahead(slot.tenant, priority, slot.weight)
        wait_s = self._paces[priority].seconds_for(ahead, self._capacity.requests, self._outstanding.requests)
        if wait_s is None or wait_s <= allowed_s:
            return
        come_back_s = min(wait_s, LONGEST_S)
        if self._queue.has_more_than_others(slot.tenant, priority):
            message = f"This key's requests wait {wait_s:.1f} s, more than {allowed_s:.1f}; send fewer at a time."
            raise ApiError("tenant_queue_full", message, retry_after=come_back_s)
        message = f"Requests wait {wait_s:.1f} s for an engine, more than {allowed_s:.1f}; retry later."
        raise ApiError("queue_full", message, retry_after=come_back_s)

    async def _wait(self, slot: "Slot", priority: Priority, left_s: float) -> None:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(slot, loop.create_future())
        ticket = self._queue.push(slot.tenant, priority, slot.weight, waiter)
        timer = loop.call_later(left_s, self._expire, ticket)
        self._pump()  # a higher class may fit where the head of a lower one does not
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if self._queue.remove(ticket):
                self._pump()
            slot.release()  # it may have been granted in the moment in which the client left
            raise
        finally:
            timer.cancel()

    def _expire(self, ticket: "Ticket[_Waiter]") -> None:
        self._refuse(ticket, self._timeout())
        self._pump()

    def _refuse(self, ticket: "Ticket[_Waiter]", error: ApiError) -> None:
        if self._queue.remove(ticket) and not ticket.item.turn.done():
            ticket.item.turn.set_exception(error)

    def _timeout(self) -> ApiError:
        message = "No engine had room before the request's deadline; retry later."
        return ApiError("queue_timeout", message, retry_after=self._drain.seconds_for(self._queue.load.cost))

    def _has_room(self, weight: int) -> bool:
        if self._outstanding.requests >= self._capacity.requests:
            return False
        return self._outstanding.requests == 0 or self._outstanding.cost + weight <= self._capacity.cost

    def _pump(self) -> None:
        """Lets go whoever may. Every change that can make room, or a new head, ends here."""
        while self._queue and (ticket := self._queue.head()) is not None:
            if ticket.item.turn.cancelled():
                self._queue.remove(ticket)
                continue
            if not self._has_room(ticket.weight):
                break
            self._queue.take()
            self._paces[ticket.priority].left(ticket.weight, self._capacity.requests)
            self._grant(ticket.item.slot)
            ticket.item.turn.set_result(None)
        for priority, pace in self._paces.items():
            pace.set_waiting(self._capacity.requests > 0 and self._queue.waiting(priority) > 0)
        self._note_empty()

    def _grant(self, slot: "Slot") -> None:
        slot.waited_s = max(0.0, self._clock() - slot.arrived)
        slot.is_held = True
        self._change(slot.tenant, 1, slot.weight)

    def _change(self, tenant: str, requests: int, cost: int) -> None:
        self._outstanding = self._outstanding.plus(requests, cost)
        load = self._by_tenant.get(tenant, _NO_LOAD).plus(requests, cost)
        if load.requests:
            self._by_tenant[tenant] = load
        else:
            del self._by_tenant[tenant]
        self._drain.set_busy(self._outstanding.requests > 0)
        self._note_empty()

    def _note_empty(self) -> None:
        if self._queue or self._outstanding.requests:
            self._empty.clear()
        else:
            self._empty.set()

    def _settle(self, slot: "Slot", weight: int) -> None:
        self._change(slot.tenant, 0, weight - slot.weight)
        self._pump()

    def _release(self, slot: "Slot") -> None:
        self._drain.record(slot.weight)
        self._change(slot.tenant, -1, -slot.weight)
        self._pump()


class Slot:
    """Leave to send one request to an engine."""

    def __init__(
        self, admission: Admission, tenant: str, weight: int, priority: Priority, deadline_s: float, arrived: float
    ) -> None:
        self._admission, self._priority, self._deadline_s = admission, priority, deadline_s
        self.tenant, self.weight, self.arrived = tenant, weight, arrived
        self.waited_s = 0.0
        self.is_held = False

    async def __aenter__(self) -> Self:
        await self._admission._enter(self, self._priority, self._deadline_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()

    def settle(self, cost: Cost) -> None:
        """What it really costs, once that is known: the difference is free, or taken, at once."""
        if self.is_held:
            self._admission._settle(self, cost.weight)
            self.weight = cost.weight

    def release(self) -> None:
        """Before the end of its block, or at it; once."""
        if self.is_held:
            self.is_held = False
            self._admission._release(self)


@dataclass(eq=False, slots=True)
class _Waiter:
    slot: Slot
    turn: asyncio.Future[None]


def _draining() -> ApiError:
    return ApiError("draining", "The gateway is shutting down; send the request again.", retry_after=1.0)
