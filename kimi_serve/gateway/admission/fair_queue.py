"""The order in which waiting requests go. Knows tenants, classes and weights; never time, capacity or asyncio.

Between classes: strict priority, except that a class that waits earns its share of all work that goes, and goes next
once it has earned its head's weight. So while it waits it gets its share, one request more or less, and no more than
that while a higher class waits: a head of weight w goes after at most w / share of other work. Age is counted in work:
no clock can bend it.
Within a class: deficit round robin over tenants on weight. A tenant's turn grants it `quantum` more tokens; it goes
while they last and then stands behind the others.

Every operation is O(1), but for `head`, which visits tenants: weight / quantum visits for each request that leaves.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kimi_serve.gateway.priority import PRIORITIES, SHARES, Priority

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Ticket(Generic[T]):
    tenant: str
    priority: Priority
    weight: int
    item: T


@dataclass(frozen=True, slots=True)
class Load:
    requests: int = 0
    cost: int = 0

    def plus(self, requests: int, cost: int) -> "Load":
        return Load(self.requests + requests, self.cost + cost)


class FairQueue(Generic[T]):
    def __init__(self, quantum: int = 2048, shares: Mapping[Priority, int] = SHARES) -> None:
        """`shares` in percent of the work, of the classes below the highest."""
        assert quantum > 0
        assert sum(shares.values()) < 100
        self._lanes: dict[Priority, _Lane[T]] = {name: _Lane(quantum, shares.get(name, 0)) for name in PRIORITIES}
        self._tenants: dict[str, Load] = {}
        self.load = Load()

    def __len__(self) -> int:
        return self.load.requests

    def push(self, tenant: str, priority: Priority, weight: int, item: T) -> Ticket[T]:
        ticket = Ticket(tenant, priority, weight, item)
        self._lanes[priority].push(ticket)
        self._count(ticket, 1)
        return ticket

    def head(self) -> Ticket[T] | None:
        """Who goes next. Asking changes nothing: the answer stays until a push, a take or a removal."""
        lane = self._next_lane()
        return None if lane is None else lane.head()

    def take(self) -> Ticket[T]:
        """Removes the head, charges its tenant and its class, and credits every class that waits with its share."""
        chosen = self._next_lane()
        assert chosen is not None
        ticket = chosen.head()
        for lane in self._lanes.values():
            lane.earn(ticket.weight)
        chosen.charge(ticket)
        self._discard(ticket)
        return ticket

    def remove(self, ticket: Ticket[T]) -> bool:
        """Out of the line, from wherever it stands. False when it has left already."""
        if ticket not in self._lanes[ticket.priority].arrivals:
            return False
        self._discard(ticket)
        return True

    def tenant(self, tenant: str) -> Load:
        return self._tenants.get(tenant, Load())

    def ahead(self, tenant: str, priority: Priority, weight: int) -> int:
        """What of its class goes before a request of this weight that came now.

        Tenants take turns, so of each other one no more than of its own. At most, and by turns that are small.
        """
        lane = self._lanes[priority]
        return min(lane.cost, (lane.cost_of(tenant) + weight) * lane.tenants_with(tenant))

    def has_more_than_others(self, tenant: str, priority: Priority) -> bool:
        """Whether more of its class waits of this tenant than of the mean one."""
        lane = self._lanes[priority]
        return lane.cost_of(tenant) * lane.tenants_with(tenant) > lane.cost

    def tenants(self) -> int:
        """How many tenants wait."""
        return len(self._tenants)

    def waiting(self, priority: Priority) -> int:
        return len(self._lanes[priority].arrivals)

    def oldest(self, priority: Priority) -> Ticket[T] | None:
        """Who of this class has waited longest."""
        return next(iter(self._lanes[priority].arrivals), None)

    def tickets(self) -> list[Ticket[T]]:
        """All that wait, in no order to rely on."""
        return [ticket for lane in self._lanes.values() for ticket in lane.arrivals]

    def _next_lane(self) -> "_Lane[T] | None":
        # The lowest first: it earns least, so it delays the others least.
        due = next((lane for lane in reversed(self._lanes.values()) if lane.is_due()), None)
        return due or next((lane for lane in self._lanes.values() if lane.arrivals), None)

    def _discard(self, ticket: Ticket[T]) -> None:
        self._lanes[ticket.priority].discard(ticket)
        self._count(ticket, -1)

    def _count(self, ticket: Ticket[T], sign: int) -> None:
        change = (sign, sign * ticket.weight)
        self.load = self.load.plus(*change)
        load = self.tenant(ticket.tenant).plus(*change)
        if load.requests:
            self._tenants[ticket.tenant] = load
        else:
            del self._tenants[ticket.tenant]


@dataclass(eq=False, slots=True)
class _Line(Generic[T]):
    """One tenant's requests within a class."""

    tickets: OrderedDict[Ticket[T], None] = field(default_factory=OrderedDict)
    cost: int = 0
    deficit: int = 0  # tokens that it may still spend in this turn


class _Lane(Generic[T]):
    """One class. Its first line is the tenant whose turn it is."""

    def __init__(self, quantum: int, share: int) -> None:
        self._quantum, self._share = quantum, share
        self._lines: OrderedDict[str, _Line[T]] = OrderedDict()
        self._is_granted = False  # has the first line got this turn's quantum?
        self.arrivals: OrderedDict[Ticket[T], None] = OrderedDict()
        self.cost = 0
        self._earned = 0  # hundredths of tokens, since somebody waits here

    def push(self, ticket: Ticket[T]) -> None:
        line = self._lines.setdefault(ticket.tenant, _Line())
        line.tickets[ticket] = None
        line.cost += ticket.weight
        self.arrivals[ticket] = None
        self.cost += ticket.weight

    def cost_of(self, tenant: str) -> int:
        line = self._lines.get(tenant)
        return 0 if line is None else line.cost

    def tenants_with(self, tenant: str) -> int:
        """How many would wait if this one did."""
        return len(self._lines) + (tenant not in self._lines)

    def head(self) -> Ticket[T]:
        while True:
            tenant, line = next(iter(self._lines.items()))
            if not self._is_granted:
                line.deficit += self._quantum
                self._is_granted = True
            ticket = next(iter(line.tickets))
            if ticket.weight <= line.deficit:
                return ticket
            self._lines.move_to_end(tenant)
            self._is_granted = False

    def charge(self, ticket: Ticket[T]) -> None:
        self._lines[ticket.tenant].deficit -= ticket.weight
        # What it got out of turn, while no higher class waited, is no debt.
        self._earned = max(0, self._earned - 100 * ticket.weight)

    def discard(self, ticket: Ticket[T]) -> None:
        line = self._lines[ticket.tenant]
        del line.tickets[ticket]
        line.cost -= ticket.weight
        del self.arrivals[ticket]
        self.cost -= ticket.weight
        if not line.tickets:
            # An empty line keeps no deficit: credit is for those who wait, not saved up by those who do not.
            self._is_granted = self._is_granted and next(iter(self._lines)) != ticket.tenant
            del self._lines[ticket.tenant]
        if not self.arrivals:
            self._earned = 0

    def earn(self, weight: int) -> None:
        if self.arrivals:
            self._earned += self._share * weight

    def is_due(self) -> bool:
        return self._earned > 0 and self._earned >= 100 * self.head().weight
