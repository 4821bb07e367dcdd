"""Keys and budgets in a real PostgreSQL: every field kept, tables made once, and no outage where the server has one."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from dataclasses import replace

import pytest

from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.tenants import admin
from kimi_serve.gateway.tenants.charge import charge
from kimi_serve.gateway.tenants.counters import LocalCounters
from kimi_serve.gateway.tenants.errors import AwayError, TenantsError
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.limits import Limits
from kimi_serve.gateway.tenants.spending import SavedSpending
from kimi_serve.gateway.tenants.stores.postgres import PostgresKeys
from kimi_serve.gateway.tenants.stores.schema import STEPS
from kimi_serve.gateway.tenants.verify import Pace, Verifier
from kimi_serve.protocol.errors import ApiError
from tests.gateway.tenants.clocks import NOW, Clock
from tests.gateway.tenants.postgres_server import PASSWORD, PostgresServer
from tests.gateway.tenants.test_stores import CHEAP, full_key, key

MAY = "2031-05"


def opened(db_url: str, timeout: float = 5.0) -> PostgresKeys:
    return PostgresKeys(db_url, timeout=timeout)


async def until_back(store: PostgresKeys) -> None:
    async with asyncio.timeout(30):
        while store._server.is_away:
            await asyncio.sleep(0.02)


def test_a_store_gives_back_every_field(db_url: str) -> None:
    async def story() -> None:
        plain, full = key(), full_key()
        async with opened(db_url) as store:
            await store.put(plain)
            await store.put(full)
        async with opened(db_url) as store:
            assert await store.get(plain.id) == plain
            assert await store.get(full.id) == full
            assert await store.get("nobody") is None
            assert sorted(found.id for found in await store.all()) == sorted([plain.id, full.id])

    asyncio.run(story())


def test_a_change_by_one_gateway_is_seen_by_another(db_url: str) -> None:
    async def story() -> None:
        first = key()
        async with opened(db_url) as ours, opened(db_url) as theirs:
            await ours.put(first)
            assert await theirs.get(first.id) == first
            await ours.put(admin.revoke(first, NOW))
            found = await theirs.get(first.id)
            assert found is not None
            assert found.revoked == NOW

    asyncio.run(story())


def put_ten(db_url: str) -> None:
    async def story() -> None:
        async with opened(db_url) as store:
            for _ in range(10):
                await store.put(key())

    asyncio.run(story())


def test_processes_that_start_at_once_make_the_tables_once_and_lose_no_key(
    postgres: PostgresServer, db_url: str
) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=put_ten, args=(db_url,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert postgres.execute("SELECT count(*) FROM kimi_serve_keys", db_url) == [(40,)]
    steps = [(number,) for number in range(1, len(STEPS) + 1)]
    assert postgres.execute("SELECT version FROM kimi_serve_schema ORDER BY 1", db_url) == steps


def test_gateways_that_start_at_once_all_find_their_tables(db_url: str) -> None:
    async def one(first: Key) -> Key | None:
        async with opened(db_url, timeout=20) as store:
            await store.put(first)
            return await store.get(first.id)

    async def story() -> None:
        keys = [key() for _ in range(12)]
        assert await asyncio.gather(*map(one, keys)) == keys

    asyncio.run(story())


def test_tables_of_an_earlier_version_get_what_they_lack_and_keep_what_they_have(
    postgres: PostgresServer, db_url: str
) -> None:
    postgres.execute("CREATE TABLE kimi_serve_schema (version int PRIMARY KEY)", db_url)
    postgres.execute("INSERT INTO kimi_serve_schema VALUES (1)", db_url)
    postgres.execute(STEPS[0], db_url)
    postgres.execute("""INSERT INTO kimi_serve_keys VALUES ('old', '{"id": "old"}')""", db_url)

    async def story() -> None:
        async with opened(db_url) as store:
            assert await store.spend({("account", MAY): 5}) == {("account", MAY): 5}

    asyncio.run(story())
    assert postgres.execute("SELECT id FROM kimi_serve_keys", db_url) == [("old",)]


def test_a_gateway_without_the_right_to_create_needs_the_tables_to_be_there(
    postgres: PostgresServer, db_url: str
) -> None:
    database = db_url.rpartition("/")[2]
    postgres.execute(f"CREATE ROLE {database}_reader LOGIN PASSWORD 'secret'")
    postgres.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", db_url)
    reader = postgres.url(database, f"{database}_reader", "secret")

    async def enter(which: str) -> None:
        async with opened(which):
            pass

    with pytest.raises(TenantsError, match="permission denied for schema public"):
        asyncio.run(enter(reader))
    asyncio.run(enter(db_url))
    postgres.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC", db_url)
    asyncio.run(enter(reader))


def test_a_hundred_keys_that_are_asked_for_at_once_are_read_together(db_url: str) -> None:
    async def story() -> None:
        keys = [key() for _ in range(20)]
        async with opened(db_url) as store:
            for one in keys:
                await store.put(one)
            statements = 0
            rows = store._server.rows

            async def counting(statement: str, values: dict[str, object]) -> list[tuple[object, ...]]:
                nonlocal statements
                statements += 1
                return await rows(statement, values)

            store._server.rows = counting  # type: ignore[method-assign,assignment]
            found = await asyncio.gather(*(store.get(keys[number % 20].id) for number in range(100)))
            assert found == [keys[number % 20] for number in range(100)]
            assert statements <= 2

    asyncio.run(story())


def test_one_who_leaves_takes_no_others_answer_along(db_url: str) -> None:
    async def story() -> None:
        first = key()
        async with opened(db_url) as store:
            await store.put(first)
            leaving, staying = (asyncio.create_task(store.get(first.id)) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
            assert await staying == first
            assert await store.get(first.id) == first

    asyncio.run(story())


def test_a_malformed_record_ends_no_other_key_and_is_not_shown(postgres: PostgresServer, db_url: str) -> None:
    async def story() -> None:
        good, bad = key(), key()
        async with opened(db_url) as store:
            for one in (good, bad):
                await store.put(one)
            postgres.execute(f"UPDATE kimi_serve_keys SET record = record - 'tenant' WHERE id = '{bad.id}'", db_url)
            answers = await asyncio.gather(store.get(good.id), store.get(bad.id), return_exceptions=True)
            assert answers[0] == good
            assert isinstance(answers[1], TenantsError)
            assert "tenant is missing" in str(answers[1])
            assert bad.secret_hash not in str(answers[1])

    asyncio.run(story())


def test_a_killed_server_is_said_to_be_away_at_once_and_used_again_when_it_is_back(
    postgres: PostgresServer, db_url: str
) -> None:
    async def story() -> None:
        first = key()
        async with opened(db_url) as store:
            await store.put(first)
            postgres.kill()
            for _ in range(3):
                began = time.perf_counter()
                with pytest.raises(AwayError) as away:
                    await store.get(first.id)
                assert time.perf_counter() - began < 4  # and not the timeout, 5
                assert PASSWORD not in str(away.value)
            await asyncio.to_thread(postgres.start)
            await until_back(store)
            assert await store.get(first.id) == first

    asyncio.run(story())


def test_a_server_that_hangs_costs_its_timeout_once(postgres: PostgresServer, db_url: str) -> None:
    async def story() -> None:
        first = key()
        async with opened(db_url, timeout=3) as store:
            await store.put(first)
            with postgres.hung():
                began = time.perf_counter()
                with pytest.raises(AwayError, match="no answer within"):
                    await store.get(first.id)
                assert 2.9 < time.perf_counter() - began < 30
                began = time.perf_counter()
                with pytest.raises(AwayError):
                    await store.get(first.id)
                assert time.perf_counter() - began < 2  # and not the timeout again
            await until_back(store)
            assert await store.get(first.id) == first

    asyncio.run(story())


def test_a_gateway_that_starts_before_its_server_finds_it_later(postgres: PostgresServer, db_url: str) -> None:
    async def story() -> None:
        postgres.kill()
        async with opened(db_url) as store:
            with pytest.raises(AwayError, match="refused"):
                await store.get("anybody")
            await asyncio.to_thread(postgres.start)
            await until_back(store)
            assert await store.get("anybody") is None

    asyncio.run(story())


def test_a_wrong_password_is_an_error_that_does_not_hold_it(postgres: PostgresServer) -> None:
    async def story() -> None:
        async with opened(postgres.url(password="wrong-one")) as store:
            with pytest.raises(AwayError, match="password authentication failed") as refused:
                await store.all()
            assert "wrong-one" not in str(refused.value)

    asyncio.run(story())


@pytest.mark.parametrize("db_url", ["postgresql://u:p%zzsecret@h/d", "postgresql://h/d?secret=1"])
def test_a_url_that_is_none_is_refused_without_repeating_it(db_url: str) -> None:
    with pytest.raises(TenantsError, match="is not postgresql://") as refused:
        PostgresKeys(db_url, timeout=1)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


# From here on what a gateway makes of it.


async def code_of(verifier: Verifier, text: str) -> str:
    try:
        await verifier.verify(text)
    except ApiError as error:
        return error.code
    return "ok"


def test_while_the_server_is_away_known_keys_go_on_for_the_outage_and_unknown_ones_do_not_enter(
    postgres: PostgresServer, db_url: str
) -> None:
    made, other = (admin.create("acme", NOW, hasher=CHEAP) for _ in range(2))
    pace, clock, wall = Pace(outage=60), Clock(1000.0), Clock(NOW.timestamp())

    async def story() -> None:
        async with (
            opened(db_url) as store,
            Verifier(store, pace, hasher=CHEAP, clock=clock, wall=wall) as verifier,
        ):
            await store.put(made.key)
            await store.put(other.key)
            assert await code_of(verifier, made.plain.reveal()) == "ok"
            postgres.kill()
            clock.now += pace.refresh
            assert await code_of(verifier, made.plain.reveal()) == "ok"
            with pytest.raises(ApiError) as refused:
                await verifier.verify(other.plain.reveal())
            assert (refused.value.code, refused.value.status) == ("keys_unavailable", 503)
            assert refused.value.retry_after is not None
            assert (verifier.is_store_away, verifier.stale) == (True, 1)
            clock.now += pace.outage - 0.1
            assert await code_of(verifier, made.plain.reveal()) == "ok"
            clock.now += 0.1
            assert await code_of(verifier, made.plain.reveal()) == "keys_unavailable"
            await asyncio.to_thread(postgres.start)
            await until_back(store)
            assert await code_of(verifier, made.plain.reveal()) == "ok"
            assert await code_of(verifier, other.plain.reveal()) == "ok"
            assert not verifier.is_store_away

    asyncio.run(story())


def test_an_outage_keeps_no_key_beyond_its_expiry(postgres: PostgresServer, db_url: str) -> None:
    made = admin.create("acme", NOW, expires=NOW.replace(hour=13), hasher=CHEAP)
    pace, clock, wall = Pace(), Clock(1000.0), Clock(NOW.timestamp())

    async def story() -> None:
        async with (
            opened(db_url) as store,
            Verifier(store, pace, hasher=CHEAP, clock=clock, wall=wall) as verifier,
        ):
            await store.put(made.key)
            assert await code_of(verifier, made.plain.reveal()) == "ok"
            postgres.kill()
            clock.now += pace.refresh
            assert await code_of(verifier, made.plain.reveal()) == "ok"
            wall.now += 3600
            assert await code_of(verifier, made.plain.reveal()) == "invalid_key"

    asyncio.run(story())


def test_gateways_add_up_what_an_account_spends(db_url: str) -> None:
    async def story() -> None:
        async with opened(db_url) as ours, opened(db_url) as theirs:

            async def spend(store: PostgresKeys) -> None:
                for number in range(20):
                    await store.spend({(f"account-{(number + n) % 5}", MAY): 1 for n in range(5)})

            await asyncio.gather(spend(ours), spend(theirs))
            names = {(f"account-{n}", MAY): 0 for n in range(5)}
            assert await ours.spend(names) == dict.fromkeys(names, 40)

    asyncio.run(story())


def budget_of(tokens: int) -> Key:
    return replace(key(), account="account", limits=Limits(tokens_per_month=tokens))


def test_a_budget_outlives_its_gateway_and_is_shared_with_the_next_one(db_url: str) -> None:
    wall = Clock(NOW.timestamp())

    async def story() -> None:
        async with opened(db_url) as store:
            async with SavedSpending(store, every=3600) as spending:
                counters = LocalCounters(wall=wall, spending=spending)
                (await charge(counters, budget_of(100), Cost(90))).settle(Cost(60))
            async with SavedSpending(store, every=3600) as ours, SavedSpending(store, every=3600) as theirs:
                first, second = (LocalCounters(wall=wall, spending=spending) for spending in (ours, theirs))
                await charge(first, budget_of(100), Cost(30))
                with pytest.raises(ApiError, match="tokens_per_month is 100"):
                    await charge(first, budget_of(100), Cost(11))
                assert await ours.save()
                with pytest.raises(ApiError, match="tokens_per_month is 100"):
                    await charge(second, budget_of(100), Cost(11))

    asyncio.run(story())


def test_what_is_spent_while_the_server_is_away_is_saved_when_it_is_back(postgres: PostgresServer, db_url: str) -> None:
    async def story() -> None:
        async with opened(db_url) as store, SavedSpending(store, every=0.05) as spending:
            counters = LocalCounters(wall=Clock(NOW.timestamp()), spending=spending)
            await charge(counters, budget_of(100), Cost(10))
            await asyncio.sleep(0.5)
            postgres.kill()
            await charge(counters, budget_of(100), Cost(70))
            await asyncio.sleep(0.2)
            with pytest.raises(ApiError, match="tokens_per_month is 100"):
                await charge(counters, budget_of(100), Cost(21))
            await asyncio.to_thread(postgres.start)
            async with asyncio.timeout(30):
                while postgres.execute("SELECT tokens FROM kimi_serve_spending", db_url) != [(80,)]:
                    await asyncio.sleep(0.05)
            assert spending.of("account", MAY) == 80

    asyncio.run(story())
