"""From text to key: one argon2 for a key, few at once, and an end to revoked and expired keys."""

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from argon2 import PasswordHasher

from kimi_serve.gateway.tenants import admin
from kimi_serve.gateway.tenants.keys import Key, new_plain_key
from kimi_serve.gateway.tenants.verify import Pace, Verifier
from kimi_serve.protocol.errors import ApiError
from tests.gateway.tenants.clocks import NOW, Clock


class CountingHasher(PasswordHasher):
    """argon2 with a small cost, that counts its runs and how many of them were at once."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.seconds, self.runs, self.running, self.most = seconds, 0, 0, 0
        self.lock = threading.Lock()

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]
        with self.lock:
            self.runs += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            time.sleep(self.seconds)
            return super().verify(hash, password)
        finally:
            with self.lock:
                self.running -= 1


class Shelf:
    """Keys in memory; counts how often it is asked."""

    def __init__(self, *keys: Key) -> None:
        self.keys = {key.id: key for key in keys}
        self.asked = 0

    async def get(self, key_id: str) -> Key | None:
        self.asked += 1
        return self.keys.get(key_id)

    async def all(self) -> list[Key]:
        return list(self.keys.values())


class Bench:
    """A verifier over one good key, with everything it is given."""

    def __init__(self, pace: Pace = Pace(), seconds: float = 0.0) -> None:  # noqa: B008  frozen
        self.hasher = CountingHasher(seconds)
        self.made = admin.create("acme", NOW, expires=NOW + timedelta(days=1), hasher=self.hasher)
        self.text = self.made.plain.reveal()
        self.store = Shelf(self.made.key)
        self.clock, self.wall = Clock(1000.0), Clock(NOW.timestamp())
        self.pace = pace

    def run(self, story: Callable[[Verifier], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            async with Verifier(
                self.store, self.pace, hasher=self.hasher, clock=self.clock, wall=self.wall
            ) as verifier:
                await story(verifier)

        asyncio.run(whole())


async def code_of(verifier: Verifier, text: str | None) -> str:
    try:
        await verifier.verify(text)
    except ApiError as error:
        return error.code
    return "ok"


def wrong(bench: Bench) -> str:
    return f"ksk_{bench.made.key.id}_{new_plain_key().secret}"


def test_a_key_is_hashed_once_and_then_neither_hashed_nor_looked_up() -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        for _ in range(100):
            assert await verifier.verify(bench.text) == bench.made.key

    bench.run(story)
    assert (bench.hasher.runs, bench.store.asked) == (1, 1)


def test_a_hundred_clients_with_one_new_key_wait_for_one_check() -> None:
    bench = Bench(seconds=0.02)

    async def story(verifier: Verifier) -> None:
        assert await asyncio.gather(*(code_of(verifier, bench.text) for _ in range(100))) == ["ok"] * 100

    bench.run(story)
    assert bench.hasher.runs == 1


def test_the_client_who_began_a_check_may_leave_without_the_others() -> None:
    bench = Bench(seconds=0.05)

    async def story(verifier: Verifier) -> None:
        first = asyncio.create_task(verifier.verify(bench.text))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(verifier.verify(bench.text))
        await asyncio.sleep(0.01)
        first.cancel()
        assert await second == bench.made.key

    bench.run(story)
    assert bench.hasher.runs == 1


@pytest.mark.parametrize("text", [None, ""])
def test_no_key_is_a_missing_key(text: str | None) -> None:
    async def story(verifier: Verifier) -> None:
        assert await code_of(verifier, text) == "missing_key"

    Bench().run(story)


@pytest.mark.parametrize("text", ["sk-proj-abc", "ksk_", "\ud800", "ksk_0123456789ab_short", "é" * 10_000])
def test_what_is_no_key_is_refused_without_a_hash(text: str) -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        assert await code_of(verifier, text) == "invalid_key"

    bench.run(story)
    assert bench.hasher.runs == 0


def test_an_unknown_id_costs_one_hash_as_a_wrong_secret_does() -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        assert await code_of(verifier, new_plain_key().reveal()) == "invalid_key"
        assert bench.hasher.runs == 1
        assert await code_of(verifier, wrong(bench)) == "invalid_key"
        assert bench.hasher.runs == 2

    bench.run(story)


def test_a_wrong_secret_stays_wrong_beside_the_right_one() -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        bad = wrong(bench)
        for _ in range(3):
            assert await code_of(verifier, bench.text) == "ok"
            assert await code_of(verifier, bad) == "invalid_key"

    bench.run(story)
    assert bench.hasher.runs == 2  # a client that repeats a wrong key at once does not cost a hash each time


def test_a_wrong_key_is_checked_again_after_the_refresh() -> None:
    """Its record may have reached the store in the meantime."""
    bench = Bench()
    late = admin.create("late", NOW, hasher=bench.hasher)

    async def story(verifier: Verifier) -> None:
        assert await code_of(verifier, late.plain.reveal()) == "invalid_key"
        bench.store.keys[late.key.id] = late.key
        bench.clock.now += bench.pace.refresh
        assert await code_of(verifier, late.plain.reveal()) == "ok"

    bench.run(story)


def test_a_flood_of_wrong_keys_runs_two_hashes_at_once_and_is_told_to_come_back() -> None:
    bench = Bench(Pace(hashing=2, waiting=8), seconds=0.01)

    async def story(verifier: Verifier) -> None:
        assert await code_of(verifier, bench.text) == "ok"
        flood = asyncio.gather(*(code_of(verifier, new_plain_key().reveal()) for _ in range(200)))
        await asyncio.sleep(0.005)
        assert await code_of(verifier, bench.text) == "ok"  # a known key does not stand in that line
        assert len(verifier._checks) == 8
        codes = await flood
        assert codes.count("invalid_key") == 8
        assert codes.count("queue_full") == 192

    bench.run(story)
    assert bench.hasher.most <= 2
    assert bench.hasher.runs == 9


def test_those_who_leave_a_flood_do_not_let_more_hashes_start() -> None:
    bench = Bench(Pace(hashing=2, waiting=8), seconds=0.02)

    async def story(verifier: Verifier) -> None:
        for _ in range(20):
            asking = asyncio.create_task(code_of(verifier, new_plain_key().reveal()))
            await asyncio.sleep(0.002)
            asking.cancel()

    bench.run(story)
    assert bench.hasher.most <= 2


def test_a_revocation_takes_effect_within_the_refresh() -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        await verifier.verify(bench.text)
        bench.store.keys[bench.made.key.id] = admin.revoke(bench.made.key, NOW)
        bench.clock.now += bench.pace.refresh
        assert await code_of(verifier, bench.text) == "invalid_key"

    bench.run(story)


def test_a_record_that_is_gone_or_has_another_hash_ends_its_key() -> None:
    bench = Bench()
    other = replace(bench.made.key, secret_hash=bench.hasher.hash("other"))

    async def story(verifier: Verifier) -> None:
        for keys in ({}, {other.id: other}):
            bench.store.keys = {bench.made.key.id: bench.made.key}
            bench.clock.now += bench.pace.refresh
            assert await code_of(verifier, bench.text) == "ok"
            bench.store.keys = keys
            bench.clock.now += bench.pace.refresh
            assert await code_of(verifier, bench.text) == "invalid_key"

    bench.run(story)


def test_a_changed_limit_reaches_a_known_key_without_a_hash() -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        await verifier.verify(bench.text)
        bench.store.keys[bench.made.key.id] = replace(bench.made.key, priority="low")
        bench.clock.now += bench.pace.refresh
        assert (await verifier.verify(bench.text)).priority == "low"

    bench.run(story)
    assert bench.hasher.runs == 1


def test_a_known_key_ends_in_the_second_that_it_expires() -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        bench.wall.now += 86_399
        assert await code_of(verifier, bench.text) == "ok"
        bench.wall.now += 1
        assert await code_of(verifier, bench.text) == "invalid_key"

    bench.run(story)


def test_a_known_key_is_hashed_again_when_it_was_remembered_long_enough() -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        await verifier.verify(bench.text)
        bench.clock.now += bench.pace.remembered
        await verifier.verify(bench.text)

    bench.run(story)
    assert bench.hasher.runs == 2


def test_what_is_remembered_is_bounded_and_holds_no_secret() -> None:
    bench = Bench(Pace(most_keys=3))
    keys = [admin.create("acme", NOW, hasher=bench.hasher) for _ in range(10)]
    bench.store.keys = {made.key.id: made.key for made in keys}

    async def story(verifier: Verifier) -> None:
        for made in keys:
            assert await code_of(verifier, made.plain.reveal()) == "ok"
            assert await code_of(verifier, new_plain_key().reveal()) == "invalid_key"
        assert len(verifier._known) == len(verifier._wrong) == 3
        assert not verifier._checks
        remembered = repr(vars(verifier))
        assert not any(made.plain.secret in remembered for made in keys)

    bench.run(story)


def test_a_refusal_holds_neither_the_key_nor_its_hash() -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        text = wrong(bench)
        with pytest.raises(ApiError) as refused:
            await verifier.verify(text)
        shown = "".join(traceback.format_exception(refused.value)) + repr(refused.value.envelope())
        assert text.rpartition("_")[2] not in shown
        assert bench.made.key.secret_hash not in shown
        assert refused.value.__cause__ is refused.value.__context__ is None

    bench.run(story)


def test_a_known_key_costs_microseconds() -> None:
    bench = Bench()

    async def story(verifier: Verifier) -> None:
        await verifier.verify(bench.text)
        rounds = []
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(100):
                await verifier.verify(bench.text)
            rounds.append((time.perf_counter() - began) / 100)
        assert min(rounds) < 100e-6
        print(f"{min(rounds) * 1e6:.1f} us a request")

    bench.run(story)
