"""Whatever requests do, in whatever order: what they hold is what is counted, and in the end it is nothing.

The gateway's own ledger, limits, line and engine, held together as a request holds them; the loop's time is the test's.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kimi_serve.gateway.admission import Admission, Bounds, BytesLedger, Capacity
from kimi_serve.gateway.admission.fair_queue import Load
from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.priority import PRIORITIES, Priority
from kimi_serve.gateway.replicas import Picture, Replica, RequestView, Text, read_prompt
from kimi_serve.gateway.replicas.health import Finding
from kimi_serve.gateway.tenants.charge import charge
from kimi_serve.gateway.tenants.counters import LocalCounters
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.limits import Limits
from kimi_serve.protocol.errors import ApiError
from tests.gateway.tenants.clocks import NOW, Clock

TENANTS = ("a", "b", "c")
LIMITS = Limits(concurrent_requests=4, bytes_in_flight=400, tokens_per_minute=20_000, tokens_per_month=10**6)
PROMPT = read_prompt([Text(b"system", 100), Picture(b"image", 50)], b"", opening=1)


class Loop(asyncio.SelectorEventLoop):
    """Time passes when the test says so."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._its_clock = clock

    def time(self) -> float:
        return self._its_clock.now

    def step(self) -> None:
        """All that is due, and nothing that is not: with something ready it does not wait."""
        self.call_soon(self.stop)
        self.run_forever()


@dataclass
class Story:
    """One request, and the point at which it waits for the test."""

    tenant: str
    told: asyncio.Future[Cost | None]
    cost: Cost
    task: asyncio.Task[None] = field(init=False)
    at: str = "start"
    held: int = 0


class Outstanding(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.clock, self.wall = Clock(1000.0), Clock(NOW.timestamp())
        self.loop = Loop(self.clock)
        asyncio.set_event_loop(self.loop)
        self.ledger = BytesLedger(1000, 500, self.clock)
        bounds = Bounds(waiting=5, waiting_per_tenant=3, quantum=200)
        self.admission = Admission(Capacity(2, 1500), bounds, self.clock)
        self.counters = LocalCounters(self.clock, self.wall)
        self.replica = Replica("http://engine", clock=self.clock)
        self.replica.note(Finding(models={"kimi": 10_000}))
        self.stories: list[Story] = []

    async def request(self, story: Story, priority: Priority, deadline_s: float) -> None:
        key = Key(story.tenant * 12, story.tenant, "", NOW, story.tenant, limits=LIMITS)
        with self.ledger.body(story.tenant) as reservation:
            reservation.reserve(story.cost.bytes)
            story.at, story.held = "body", story.cost.bytes
            await asyncio.sleep(0)
            with await charge(self.counters, key, story.cost) as charged:
                story.at = "waiting"
                async with self.admission.slot(story.tenant, story.cost, priority, deadline_s) as slot:
                    story.at = "engine"
                    view = RequestView("kimi", story.cost.weight, story.cost.tokens, PROMPT.key)
                    with self.replica.serving(PROMPT, view) as call:
                        actual = await story.told
                        if actual is None:
                            call.failed()
                            raise ConnectionResetError
                        call.succeeded()
                    slot.settle(actual)
                    charged.settle(actual)

    @rule(
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from(PRIORITIES),
        tokens=st.sampled_from([0, 10, 400, 2000]),
        size=st.sampled_from([0, 10, 90, 501]),
        deadline_s=st.sampled_from([60.0, 60.0, 1.0, 0.0]),
    )
    def arrive(self, tenant: str, priority: Priority, tokens: int, size: int, deadline_s: float) -> None:
        self.stories.append(self._story(tenant, Cost(tokens, tokens // 3, bytes=size), priority, deadline_s))
        self.loop.step()

    def _story(self, tenant: str, cost: Cost, priority: Priority, deadline_s: float) -> Story:
        story = Story(tenant, self.loop.create_future(), cost)
        story.task = self.loop.create_task(self.request(story, priority, deadline_s))
        return story

    @rule(steps=st.integers(1, 4))
    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            self.loop.step()

    @rule(seconds=st.sampled_from([0.5, 2.0, 70.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(seconds=st.sampled_from([-1e9, -3600.0, 3600.0, 40 * 86_400.0]))
    def jump_of_the_wall_clock(self, seconds: float) -> None:
        self.wall.now = max(0.0, self.wall.now + seconds)

    @rule(requests=st.sampled_from([0, 1, 2, 3, 3]), tokens=st.sampled_from([0, 1500, 5000]))
    def engines_come_and_go(self, requests: int, tokens: int) -> None:
        self.admission.set_capacity(Capacity(requests, tokens))

    @precondition(lambda self: self._live())
    @rule(which=st.integers(0, 20))
    def leave(self, which: int) -> None:
        self._cancel(self._live(), which)

    @precondition(lambda self: self._live("engine"))
    @rule(which=st.integers(0, 20))
    def fail(self, which: int) -> None:
        self._tell(which, None)

    @precondition(lambda self: self._live("engine"))
    @rule(which=st.integers(0, 20), tokens=st.integers(0, 4000))
    def settle(self, which: int, tokens: int) -> None:
        self._tell(which, Cost(tokens, bytes=7))

    @precondition(lambda self: self._live("engine") and self._live("waiting"))
    @rule(which=st.integers(0, 20), leaver=st.integers(0, 20), steps=st.integers(0, 3))
    def leave_while_another_ends(self, which: int, leaver: int, steps: int) -> None:
        """Also in the moment between being granted a turn and taking it."""
        waiting = self._live("waiting")
        self._tell(which, Cost(1))
        for _ in range(steps):
            self.loop.step()
        self._cancel(waiting, leaver)

    @rule(refuse_waiting=st.booleans())
    def shut_down(self, refuse_waiting: bool) -> None:
        if len(self.stories) > 15:  # not at once: it ends most of what can happen
            self.admission.drain(refuse_waiting=refuse_waiting)

    @invariant()
    def what_is_held_is_counted(self) -> None:
        if not hasattr(self, "ledger"):
            return
        seen, live = self.admission.snapshot(), self._live()
        assert self.ledger.total == sum(self.ledger.snapshot().values()) <= 1000
        assert self.ledger.total == sum(story.held for story in live)
        assert seen.outstanding.requests == sum(load.requests for load in seen.outstanding_by_tenant.values())
        assert seen.outstanding.cost == sum(load.cost for load in seen.outstanding_by_tenant.values()) >= 0
        assert self.replica.requests <= seen.outstanding.requests <= len(live)
        for account, usage in self.counters._accounts.items():
            assert 0 <= usage.running <= 4
            assert 0 <= usage.bytes <= 400
            assert usage.running <= sum(story.tenant == account for story in live)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for number, story in enumerate(self.stories):
            if number % 2 and not story.told.done():
                story.told.set_result(Cost(1))
            else:
                story.task.cancel()
        self.admission.set_capacity(Capacity(10, 10**6))
        for _ in range(100):
            self.loop.step()
        self.clock.now += 100  # deadlines of whoever still waits
        for _ in range(100):
            self.loop.step()
        try:
            self._nothing_is_left()
        finally:
            self.loop.close()
            asyncio.set_event_loop(None)

    def _nothing_is_left(self) -> None:
        for story in self.stories:
            assert story.task.done()
            with suppress(asyncio.CancelledError, ApiError, ConnectionResetError):
                story.task.result()
        seen = self.admission.snapshot()
        assert (self.ledger.total, self.ledger.snapshot()) == (0, {})
        assert (seen.outstanding, seen.outstanding_by_tenant) == (Load(), {})
        assert set(seen.waiting.values()) == {0}
        assert self.admission._queue.load == Load()
        assert self.admission._queue.tenants() == 0
        assert (self.replica.requests, self.replica.outstanding) == (0, 0)
        assert [(usage.running, usage.bytes) for usage in self.counters._accounts.values()] == [(0, 0)] * len(
            self.counters._accounts
        )

    def _live(self, at: str | None = None) -> list[Story]:
        return [story for story in self.stories if not story.task.done() and at in (None, story.at)]

    def _cancel(self, stories: list[Story], which: int) -> None:
        stories[which % len(stories)].task.cancel()

    def _tell(self, which: int, actual: Cost | None) -> None:
        running = self._live("engine")
        told = running[which % len(running)].told
        if not told.done():
            told.set_result(actual)


TestOutstanding = Outstanding.TestCase
TestOutstanding.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
