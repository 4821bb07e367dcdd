"""What is done to a part, and for how long. Knows parts; neither requests nor what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, get_args

from benchmarks.faults.parts import Part
from benchmarks.faults.stack import Kind, Stack

SLOW_S: Final = 0.3  # for each piece on its way
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Fault:
    """may_end_streams: what had begun there cannot go on. may_cut: its clients' connections end with it."""

    name: str
    what: str
    kind: Kind
    inject: Callable[[Stack, float], None]
    on_wire: bool = False
    needs_process: bool = True  # of the part; one that somebody else runs has only a wire
    may_end_streams: bool = False
    may_cut: bool = False


def kill(part: Part, seconds: float) -> None:
    part.kill()
    time.sleep(seconds)
    part.start()


def stop(part: Part, seconds: float) -> None:
    part.hold()
    try:
        time.sleep(seconds)
    finally:
        part.go_on()


def hang(part: Part, seconds: float) -> None:
    """Until somebody finds out and ends it, as a liveness probe does."""
    part.hold()
    time.sleep(seconds)
    part.kill()
    part.start()


def slow(part: Part, seconds: float) -> None:
    assert part.wire is not None
    part.wire.delay_s = SLOW_S
    time.sleep(seconds)
    part.wire.delay_s = 0.0


def partition(part: Part, seconds: float) -> None:
    """Bytes stop, and nobody is told; then they go on."""
    assert part.wire is not None
    part.wire.freeze()
    time.sleep(seconds)
    part.wire.live.set()


def restart(part: Part, seconds: float) -> None:
    part.leave()
    time.sleep(seconds / 4)
    part.start()


def upgrade(stack: Stack, seconds: float) -> None:
    """Every gateway and then every engine: it leaves, and another starts in its place."""
    for gateway in stack.gateways:
        gateway.leave()
        gateway.start()
        stack.wait_for_engines()
    for engine in stack.engines:
        engine.leave()
        engine.start()
        stack.wait_for_engines()
        time.sleep(seconds / 10)


_DONE: Final[tuple[tuple[Callable[[Part, float], None], str], ...]] = (
    (kill, "SIGKILL, and started again"),
    (stop, "SIGSTOP, then SIGCONT"),
    (slow, f"{SLOW_S:g} s for each piece on its way"),
    (partition, "no byte passes, then all go on"),
    (restart, "SIGTERM, and started again"),
)


def faults() -> list[Fault]:
    found = []
    for kind in KINDS:
        for done, what in _DONE:
            found.append(_of_one(kind, done, what))
        if kind == "engine":
            found.append(_of_one(kind, hang, "SIGSTOP, then SIGKILL, and started again"))
    found.append(Fault("rolling-upgrade", "every gateway, then every engine restarted in turn", "engine", upgrade))
    return found


def _of_one(kind: Kind, done: Callable[[Part, float], None], what: str) -> Fault:
    on_wire = done in (slow, partition)
    return Fault(
        f"{kind}-{done.__name__}",
        what,
        kind,
        lambda stack, seconds: done(stack.part(kind), seconds),
        on_wire=on_wire,
        needs_process=not on_wire,
        may_end_streams=kind == "engine" and done in (kill, hang),
        may_cut=kind == "gateway" and done is kill,
    )
