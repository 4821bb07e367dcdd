"""Who may go to an engine, when, and who is told to come back later. Knows costs; never a socket or a replica."""

from kimi_serve.gateway.admission.ledger import BytesLedger, Reservation
from kimi_serve.gateway.admission.slots import Admission, Bounds, Capacity, Slot, Snapshot

__all__ = ["Admission", "Bounds", "BytesLedger", "Capacity", "Reservation", "Slot", "Snapshot"]
