"""Who may go to an engine, when, and who is told to come back later. Knows costs; never a socket or a replica."""

from kimi_serve.gateway.admission.cost import Cost
from kimi_serve.gateway.admission.fair_queue import PRIORITIES, Priority
from kimi_serve.gateway.admission.ledger import BytesLedger, Reservation
from kimi_serve.gateway.admission.slots import Admission, Bounds, Capacity, Slot, Snapshot

__all__ = [
    "PRIORITIES", "Admission", "Bounds", "BytesLedger", "Capacity", "Cost", "Priority", "Reservation", "Slot",
    "Snapshot",
]  # fmt: skip
