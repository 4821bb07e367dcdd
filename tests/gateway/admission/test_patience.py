"""Who is told at once that it would wait too long, by how fast its line moves; in simulated time."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from kimi_serve.gateway.admission import Admission, Bounds, Capacity
from kimi_serve.gateway.priority import Priority
from kimi_serve.protocol.errors import ApiError
from tests.gateway.admission.test_slots import Client, is_clean, run, settle

PLACES = 4
TOKENS = 100  # of every request; each place takes a second for it


@dataclass
class Stage:
    """Engines with places, each of which serves one request a second, and the requests that they serve."""

    places: int = PLACES
    patience_s: float = 1.0
    now: float = 0.0
    at_engine: list[Client] = field(default_factory=list)
    waiting: list[Client] = field(default_factory=list)
    gone: list[Client] = field(default_factory=list)

    def __post_init__(self) -> None:
        bounds = Bounds(patience_s=self.patience_s)
        self.admission = Admission(Capacity(self.places, 10**9), bounds, clock=lambda: self.now)

    async def arrive(self, tenant: str = "t", priority: Priority = "normal", deadline_s: float = 60.0) -> Client:
        client = Client(self.admission, tenant, TOKENS, priority=priority, deadline_s=deadline_s)
        self.waiting.append(client)
        await self.look()
        return client

    async def look(self) -> None:
        await settle()
        self.at_engine += [client for client in self.waiting if client.entered]
        self.waiting = [client for client in self.waiting if not client.entered and not client.task.done()]

    async def serve(self, seconds: float = 1.0) -> None:
        """All that is at engines ends evenly over these seconds, and what waits comes in its place."""
        serving, self.at_engine = self.at_engine, []
        for client in serving:
            self.now += seconds / len(serving)
            await client.finish()
            await self.look()

    async def learn(self, seconds: int = 3, tenant: str = "t", priority: Priority = "normal") -> None:
        """Two more than there are places wait all the time, of a class that is never refused or while none may be."""
        for _ in range(seconds):
            while len(self.waiting) < 2:
                await self.arrive(tenant, priority)
            await self.serve()

    async def finish(self) -> None:
        while self.at_engine:
            await self.serve()
        assert is_clean(self.admission)


async def refused(stage: Stage, **options: Any) -> ApiError | None:
    client = await stage.arrive(**options)
    return await client.refusal() if client.task.done() else None


def test_a_request_that_would_wait_too_long_is_told_at_once_and_when_to_come_back() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20)
        while (error := await refused(stage)) is None:
            assert len(stage.waiting) < 2 * PLACES
        assert (error.code, error.status) == ("queue_full", 503)
        assert error.retry_after == pytest.approx(1.25, rel=0.1)  # five wait, and four go in a second
        assert len(stage.waiting) == PLACES + 1
        await stage.finish()

    run(scenario())


def test_patience_is_a_setting() -> None:
    async def scenario() -> None:
        stage = Stage(patience_s=3.0)
        await stage.learn(20)
        while await refused(stage) is None:
            assert len(stage.waiting) < 4 * PLACES
        assert len(stage.waiting) == 3 * PLACES + 1
        await stage.finish()

    run(scenario())


def test_nobody_is_refused_while_the_pace_is_unknown() -> None:
    async def scenario() -> None:
        stage = Stage()
        assert [await refused(stage) for _ in range(50)] == [None] * 50
        stage.now += 5.0  # all began together: nothing has ended yet, which says nothing
        assert await refused(stage) is None
        await stage.finish()

    run(scenario())


def test_one_early_end_of_many_that_began_together_is_no_pace() -> None:
    async def scenario() -> None:
        stage = Stage()
        assert [await refused(stage) for _ in range(2 * PLACES)] == [None] * 2 * PLACES
        stage.now += 5.0
        early = stage.at_engine.pop()
        await early.finish()
        await stage.look()
        assert await refused(stage) is None
        await stage.finish()

    run(scenario())


def test_the_first_in_line_may_always_wait() -> None:
    """After a time in which the engines did nothing too, so that it is seen when they work again."""

    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20)
        error = None
        for _ in range(10):
            stage.now += 60.0
            error = await refused(stage)
        assert error is not None
        assert error.retry_after == 60.0  # and not the hours that it looks like
        while stage.waiting:
            await stage.serve()
        assert [await refused(stage) for _ in range(PLACES + 1 - len(stage.at_engine))][-1] is None
        assert len(stage.waiting) == 1
        await stage.finish()

    run(scenario())


def test_quiet_time_does_not_lower_the_pace() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20)
        await stage.finish()
        for _ in range(100):  # one request at a time is a quarter of what the engines can do
            await stage.arrive()
            await stage.serve()
        for _ in range(PLACES):
            await stage.arrive()
        assert [await refused(stage) for _ in range(PLACES)] == [None] * PLACES
        await stage.finish()

    run(scenario())


def test_the_pace_follows_the_number_of_engines() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20)
        stage.admission.set_capacity(Capacity(2 * PLACES, 10**9))
        await stage.look()
        while await refused(stage) is None:
            assert len(stage.waiting) < 4 * PLACES
        assert len(stage.waiting) == 2 * PLACES + 1
        await stage.finish()

    run(scenario())


def test_without_an_engine_requests_wait_for_one() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20)
        await stage.finish()
        stage.admission.set_capacity(Capacity(0, 0))
        assert [await refused(stage) for _ in range(50)] == [None] * 50
        stage.now += 30.0
        stage.admission.set_capacity(Capacity(PLACES, 10**9))
        await stage.look()
        error = await refused(stage)
        assert error is not None
        assert error.retry_after == pytest.approx(46 / PLACES, rel=0.1)  # the time without an engine is not counted
        await stage.finish()

    run(scenario())


def test_work_that_nobody_waits_for_waits_as_long_as_its_deadline_lets_it() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20, priority="low")
        assert [await refused(stage, priority="low", deadline_s=9.0) for _ in range(8 * PLACES)] == [None] * 8 * PLACES
        while (error := await refused(stage, priority="low", deadline_s=9.0)) is None:
            assert len(stage.waiting) < 12 * PLACES
        assert error.code == "queue_full"
        assert len(stage.waiting) == 9 * PLACES + 1
        await stage.finish()

    run(scenario())


def test_a_higher_class_does_not_wait_for_the_line_of_a_lower_one() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20)
        await stage.learn(10, priority="high")
        while await refused(stage) is None:
            assert len(stage.waiting) < 4 * PLACES
        assert await refused(stage, priority="high") is None
        await stage.finish()

    run(scenario())


def test_a_tenant_that_fills_the_line_keeps_no_other_out() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20, tenant="flood")
        while await refused(stage, tenant="flood") is None:
            assert len(stage.waiting) < 4 * PLACES
        assert await refused(stage, tenant="calm") is None
        error = await refused(stage, tenant="flood")
        assert error is not None
        assert (error.code, error.status) == ("tenant_queue_full", 429)
        assert error.retry_after is not None
        await stage.finish()

    run(scenario())


def test_many_tenants_with_a_request_each_do_not_make_a_long_line() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20, tenant="0")
        errors = [await refused(stage, tenant=str(number)) for number in range(1, 10 * PLACES)]
        assert len(stage.waiting) == PLACES + 1
        assert {error.code for error in errors if error is not None} == {"queue_full"}
        await stage.finish()

    run(scenario())


def test_offered_twice_what_they_can_do_engines_never_idle_and_nobody_waits_much_longer_than_patience() -> None:
    async def scenario() -> None:
        stage, waited, told = Stage(), list[float](), list[ApiError]()
        for second in range(60):
            for _ in range(2 * PLACES):
                if (error := await refused(stage)) is not None:
                    told.append(error)
            assert len(stage.at_engine) == PLACES
            begun = {id(client) for client in stage.at_engine}
            await stage.serve()
            if second >= 10:
                waited += [client.slot.waited_s for client in stage.at_engine if id(client) not in begun]
        assert len(waited) == 50 * PLACES
        assert max(waited) < 2.5  # it comes in bursts of two seconds' work
        assert len(told) > 50 * PLACES * 0.9
        assert all(error.retry_after is not None and error.retry_after >= 1 for error in told)
        await stage.finish()

    run(scenario())


def test_draining_and_deadlines_come_before_patience() -> None:
    async def scenario() -> None:
        stage = Stage()
        await stage.learn(20)
        late = Client(stage.admission, deadline_s=1.0, arrived=stage.now - 2.0)
        assert (await late.refusal()).code == "queue_timeout"
        stage.admission.drain(refuse_waiting=False)
        assert (await Client(stage.admission).refusal()).code == "draining"
        await stage.finish()

    run(scenario())
