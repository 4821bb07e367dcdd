"""Slots on the engines and the line in front of them."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from kimi_serve.gateway.admission import Admission, Bounds, Capacity
from kimi_serve.gateway.admission.fair_queue import Load
from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.priority import PRIORITIES, Priority
from kimi_serve.protocol.errors import ApiError


class Client:
    """A request that takes a slot and keeps it until it is told to finish."""

    def __init__(self, admission: Admission, tenant: str = "t", tokens: int = 10, **options: Any) -> None:
        self._admission, self._arguments, self._options = admission, (tenant, Cost(tokens)), options
        self._finish = asyncio.Event()
        self.entered = False
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._admission.slot(*self._arguments, **self._options) as self.slot:
            self.entered = True
            await self._finish.wait()

    async def finish(self) -> None:
        self._finish.set()
        await self.task

    async def refusal(self) -> ApiError:
        with pytest.raises(ApiError) as refused:
            await self.task
        return refused.value


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


def is_clean(admission: Admission) -> bool:
    snapshot = admission.snapshot()
    return (
        snapshot.outstanding == Load()
        and not snapshot.outstanding_by_tenant
        and set(snapshot.waiting.values()) == {0}
        and not admission._queue.load.cost
    )


def test_a_request_that_finds_room_goes_at_once_and_counts_until_it_ends() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(requests=2, cost=100))
        async with admission.slot("t", Cost(30)) as slot:
            assert slot.waited_s < 1
            assert admission.snapshot().outstanding_by_tenant == {"t": Load(1, 30)}
        assert is_clean(admission)

    run(scenario())


@pytest.mark.parametrize(("capacity", "tokens"), [(Capacity(1, 1000), 10), (Capacity(10, 100), 60)])
def test_the_second_waits_for_the_first(capacity: Capacity, tokens: int) -> None:
    async def scenario() -> None:
        admission = Admission(capacity)
        first, second = Client(admission, tokens=tokens), Client(admission, tokens=tokens)
        await settle()
        assert (first.entered, second.entered) == (True, False)
        await first.finish()
        await settle()
        assert second.entered
        await second.finish()
        assert is_clean(admission)

    run(scenario())


def test_a_request_larger_than_everything_runs_alone() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(requests=10, cost=100))
        small, giant, next_small = (Client(admission, tokens=tokens) for tokens in (10, 5000, 10))
        await settle()
        assert [small.entered, giant.entered, next_small.entered] == [True, False, False]
        await small.finish()
        await settle()
        assert [giant.entered, next_small.entered] == [True, False]
        await giant.finish()
        await settle()
        assert next_small.entered
        await next_small.finish()

    run(scenario())


def test_a_large_request_at_the_head_is_not_overtaken_within_its_class() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(requests=10, cost=100))
        running, large, small = Client(admission, "a", 50), Client(admission, "b", 80), Client(admission, "c", 10)
        await settle()
        assert [running.entered, large.entered, small.entered] == [True, False, False]
        await running.finish()
        await settle()
        assert large.entered
        assert small.entered
        await large.finish()
        await small.finish()

    run(scenario())


def test_a_higher_class_that_fits_passes_a_lower_one_that_does_not() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(requests=10, cost=100))
        running = Client(admission, tokens=50)
        batch = Client(admission, tokens=80, priority="low")
        await settle()
        chat = Client(admission, tokens=10, priority="high")
        await settle()
        assert (batch.entered, chat.entered) == (False, True)
        for client in (running, chat, batch):
            await client.finish()

    run(scenario())


def test_tenants_take_turns() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 1000), Bounds(quantum=10))
        running = Client(admission, "first")
        await settle()
        flood = [Client(admission, "flood") for _ in range(50)]
        await settle()
        calm = Client(admission, "calm")
        await settle()
        await running.finish()
        for client in flood[:1]:
            await client.finish()
        await settle()
        assert calm.entered
        await calm.finish()
        for client in flood[1:]:
            await client.finish()
        assert is_clean(admission)

    run(scenario())


def test_a_request_that_leaves_the_line_is_gone_at_once() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 1000))
        running, leaver, last = (Client(admission) for _ in range(3))
        await settle()
        leaver.task.cancel()
        await settle()
        assert admission.snapshot().waiting["normal"] == 1
        assert admission.snapshot().waiting_cost == 10
        await running.finish()
        await settle()
        assert last.entered
        await last.finish()
        assert is_clean(admission)

    run(scenario())


def test_the_head_that_leaves_makes_way_for_the_next_that_fits() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(10, 100))
        running, large, small = Client(admission, "a", 50), Client(admission, "b", 80), Client(admission, "c", 10)
        await settle()
        large.task.cancel()
        await settle()
        assert small.entered
        await running.finish()
        await small.finish()
        assert is_clean(admission)

    run(scenario())


def test_a_slot_granted_in_the_moment_of_leaving_is_given_back() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 1000))
        running, leaver = Client(admission), Client(admission)
        await settle()
        running.slot.release()  # grants the leaver its turn, which it has not noticed yet
        assert admission.snapshot().outstanding.requests == 1
        leaver.task.cancel()
        await settle()
        assert not leaver.entered
        await running.finish()
        assert is_clean(admission)

    run(scenario())


def test_a_client_that_left_in_the_same_moment_is_not_granted_a_slot() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 1000))
        running, leaver, last = (Client(admission) for _ in range(3))
        await settle()
        leaver.task.cancel()
        running.slot.release()
        await settle()
        assert last.entered
        await running.finish()
        await last.finish()
        assert is_clean(admission)

    run(scenario())


def test_the_deadline_counts_from_arrival() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 1000))
        running = Client(admission)
        await settle()
        started = time.monotonic()
        late = Client(admission, deadline_s=10.0, arrived=started - 9.9)
        error = await late.refusal()
        assert time.monotonic() - started < 8.0  # and not 10
        assert (error.code, error.status) == ("queue_timeout", 503)
        assert error.retry_after is not None
        assert (await Client(admission, deadline_s=10.0, arrived=started - 11).refusal()).code == "queue_timeout"
        await running.finish()
        assert is_clean(admission)

    run(scenario())


def test_the_head_whose_deadline_passes_makes_way_for_the_next_that_fits() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(10, 100))
        running, large = Client(admission, "a", 50), Client(admission, "b", 80, deadline_s=0.05)
        await settle()
        small = Client(admission, "c", 10)
        assert (await large.refusal()).code == "queue_timeout"
        await settle()
        assert small.entered
        await running.finish()
        await small.finish()

    run(scenario())


def test_one_tenants_line_is_bounded() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 1000), Bounds(waiting_per_tenant=2))
        clients = [Client(admission, "a") for _ in range(3)]
        await settle()
        error = await Client(admission, "a").refusal()
        assert (error.code, error.status) == ("tenant_queue_full", 429)
        assert error.retry_after is not None
        clients.append(Client(admission, "b"))
        await settle()
        for client in clients:
            await client.finish()
        assert is_clean(admission)

    run(scenario())


def test_the_whole_line_is_bounded() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 1000), Bounds(waiting=2))
        clients = [Client(admission, str(number)) for number in range(3)]
        await settle()
        error = await Client(admission, "new").refusal()
        assert (error.code, error.status) == ("queue_full", 503)
        assert error.retry_after is not None
        for client in clients:
            await client.finish()
        assert is_clean(admission)

    run(scenario())


def test_with_no_line_allowed_a_free_slot_is_still_given() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 1000), Bounds(waiting=0))
        async with admission.slot("a", Cost(1)):
            assert (await Client(admission).refusal()).code == "queue_full"
        async with admission.slot("a", Cost(1)):
            pass

    run(scenario())


def test_retry_after_follows_the_measured_rate() -> None:
    async def scenario() -> None:
        now = [0.0]
        admission = Admission(Capacity(1, 10_000), Bounds(waiting=1), clock=lambda: now[0])
        for _ in range(300):  # 100 tokens a second
            async with admission.slot("a", Cost(100)):
                now[0] += 1.0
        running, waiting = Client(admission, "a", 10), Client(admission, "b", 2000)
        await settle()
        assert (await Client(admission, "c").refusal()).retry_after == pytest.approx(20.0, rel=0.1)
        await running.finish()
        await waiting.finish()

    run(scenario())


def test_a_tenant_with_a_short_line_is_told_to_come_back_sooner_than_the_whole_line_takes() -> None:
    async def scenario() -> None:
        now = [0.0]
        admission = Admission(Capacity(1, 10_000), Bounds(waiting_per_tenant=1), clock=lambda: now[0])
        for _ in range(300):  # 100 tokens a second
            async with admission.slot("a", Cost(100)):
                now[0] += 1.0
        clients = [Client(admission, "a", 10), Client(admission, "long", 5000), Client(admission, "short", 500)]
        await settle()
        assert (await Client(admission, "short").refusal()).retry_after == pytest.approx(10.0, rel=0.1)
        assert (await Client(admission, "long").refusal()).retry_after == pytest.approx(55.0, rel=0.1)
        for client in clients:
            await client.finish()

    run(scenario())


def test_capacity_follows_the_replicas() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(0, 0))
        clients = [Client(admission) for _ in range(3)]
        await settle()
        assert not any(client.entered for client in clients)
        admission.set_capacity(Capacity(2, 100))
        await settle()
        assert [client.entered for client in clients] == [True, True, False]
        admission.set_capacity(Capacity(1, 100))
        await clients[0].finish()
        await settle()
        assert not clients[2].entered
        await clients[1].finish()
        await settle()
        assert clients[2].entered
        await clients[2].finish()
        assert is_clean(admission)

    run(scenario())


def test_settling_to_less_makes_room_and_the_counters_still_return_to_zero() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(10, 100))
        first, second = Client(admission, tokens=90), Client(admission, tokens=50)
        await settle()
        assert not second.entered
        first.slot.settle(Cost(text_tokens=20))
        await settle()
        assert second.entered
        assert admission.snapshot().outstanding == Load(2, 70)
        second.slot.settle(Cost(text_tokens=500))
        await first.finish()
        await second.finish()
        second.slot.settle(Cost(text_tokens=7))  # too late to matter
        assert is_clean(admission)

    run(scenario())


def test_a_slot_released_early_is_free_at_once_and_only_once() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 100))
        first, second = Client(admission), Client(admission)
        await settle()
        first.slot.release()
        first.slot.release()
        await settle()
        assert second.entered
        await first.finish()
        assert admission.snapshot().outstanding.requests == 1
        await second.finish()
        assert is_clean(admission)

    run(scenario())


def test_a_failure_inside_the_slot_gives_it_back() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 100))
        with pytest.raises(ZeroDivisionError):
            async with admission.slot("t", Cost(1)):
                raise ZeroDivisionError
        assert is_clean(admission)

    run(scenario())


@pytest.mark.parametrize("refuse_waiting", [True, False])
def test_draining_refuses_the_new_and_the_waiting_as_told(refuse_waiting: bool) -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(1, 100))
        running, waiting = Client(admission), Client(admission)
        await settle()
        admission.drain(refuse_waiting=refuse_waiting)
        assert (await Client(admission).refusal()).code == "draining"
        emptied = asyncio.create_task(admission.emptied())
        if refuse_waiting:
            assert (await waiting.refusal()).code == "draining"
        await settle()
        assert not emptied.done()
        await running.finish()
        if not refuse_waiting:
            await settle()
            assert waiting.entered
            assert not emptied.done()
            await waiting.finish()
        await emptied
        assert is_clean(admission)

    run(scenario())


def test_a_snapshot_tells_who_waits_and_for_how_long() -> None:
    async def scenario() -> None:
        now = [100.0]
        admission = Admission(Capacity(1, 100), clock=lambda: now[0])
        running = Client(admission, "a", 40)
        await settle()
        waiting = [Client(admission, "b", 10, priority=priority) for priority in PRIORITIES for _ in range(2)]
        await settle()
        now[0] += 7.0
        snapshot = admission.snapshot()
        assert snapshot.waiting == {"high": 2, "normal": 2, "low": 2}
        assert snapshot.oldest_s == {"high": 7.0, "normal": 7.0, "low": 7.0}
        assert snapshot.outstanding_by_tenant == {"a": Load(1, 40)}
        for client in (running, *waiting):
            await client.finish()
        assert waiting[0].slot.waited_s == 7.0

    run(scenario())


def test_ten_thousand_waiting_requests_enter_and_leave() -> None:
    async def scenario() -> None:
        admission = Admission(Capacity(50, 10**9), Bounds(waiting=20_000, waiting_per_tenant=20_000))
        served = 0

        async def one(number: int) -> None:
            nonlocal served
            priority: Priority = PRIORITIES[number % 3]
            async with admission.slot(f"t{number % 500}", Cost(number % 3000), priority):
                await asyncio.sleep(0)
                served += 1

        tasks = [asyncio.create_task(one(number)) for number in range(10_000)]
        await asyncio.sleep(0)
        for task in tasks[5000:6000]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert served == 9_000
        assert is_clean(admission)

    run(scenario())
