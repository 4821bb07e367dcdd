"""Every store keeps every field; a file changes whole or not at all; what is broken is refused without its values."""

import asyncio
import json
import logging
import multiprocessing
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from kimi_serve.gateway.tenants import admin
from kimi_serve.gateway.tenants.errors import TenantsError
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.limits import Limits
from kimi_serve.gateway.tenants.records import dumps, loads
from kimi_serve.gateway.tenants.salt import cache_salt
from kimi_serve.gateway.tenants.stores import WritableKeyStore
from kimi_serve.gateway.tenants.stores.environment import EnvironmentKeys
from kimi_serve.gateway.tenants.stores.file import FileKeys
from kimi_serve.gateway.tenants.stores.sqlite import SqliteKeys
from tests.gateway.tenants.clocks import NOW

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


def key(name: str = "ci") -> Key:
    return admin.create("acme", NOW, name=name, hasher=CHEAP).key


def full_key() -> Key:
    """Every field differs from its default."""
    soon = NOW + timedelta(days=1)
    made = admin.create(
        "acme",
        NOW,
        name="ci",
        expires=soon,
        scopes=["admin"],
        models=["a*", "b"],
        limits=Limits(1, 2, 3, 4, 5, 6, 0),
        priority="high",
        hasher=CHEAP,
    )
    return replace(made.key, revoked=soon, account="earlier")


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[WritableKeyStore]:
    if kind == "file":
        yield FileKeys(folder / "keys")
    else:
        async with SqliteKeys(folder / "keys") as keys:
            yield keys


@pytest.fixture(params=["file", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_store_gives_back_every_field(kind: str, tmp_path: Path) -> None:
    async def story() -> None:
        plain, full = key(), full_key()
        async with opened(kind, tmp_path) as store:
            await store.put(plain)
            await store.put(full)
        async with opened(kind, tmp_path) as store:
            assert await store.get(plain.id) == plain
            assert await store.get(full.id) == full
            assert await store.get("nobody") is None
            assert sorted(found.id for found in await store.all()) == sorted([plain.id, full.id])

    asyncio.run(story())


def test_a_change_by_one_gateway_is_seen_by_another(kind: str, tmp_path: Path) -> None:
    async def story() -> None:
        first = key()
        async with opened(kind, tmp_path) as ours:
            await ours.put(first)
            async with opened(kind, tmp_path) as theirs:
                assert await theirs.get(first.id) == first
                await ours.put(admin.revoke(first, NOW))
                found = await theirs.get(first.id)
                assert found is not None
                assert found.revoked == NOW

    asyncio.run(story())


def test_a_store_is_readable_by_its_owner_alone(kind: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(kind, tmp_path) as store:
            await store.put(key())
            assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}

    before = os.umask(0)
    try:
        asyncio.run(story())
    finally:
        os.umask(before)


def put_ten(kind: str, folder: Path) -> None:
    async def story() -> None:
        async with opened(kind, folder) as store:
            for _ in range(10):
                await store.put(key())

    asyncio.run(story())


def test_two_processes_that_write_at_once_lose_no_key(kind: str, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=put_ten, args=(kind, tmp_path)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0

    async def count() -> int:
        async with opened(kind, tmp_path) as store:
            return len(await store.all())

    assert asyncio.run(count()) == 20


def test_a_file_leaves_nothing_beside_it(tmp_path: Path) -> None:
    asyncio.run(FileKeys(tmp_path / "keys").put(key()))
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    asyncio.run(FileKeys(path).put(key()))
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        asyncio.run(FileKeys(path).put(key()))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["keys"]


def test_a_slip_in_the_file_keeps_the_keys_before_it_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, first = tmp_path / "keys", key()
    store = FileKeys(path)

    async def story() -> None:
        await store.put(first)
        assert await store.get(first.id) == first
        path.write_text(path.read_text()[:-5])
        assert await store.get(first.id) == first
        assert await store.get(first.id) == first
        path.write_text(dumps([]))
        assert await store.get(first.id) is None

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    (record,) = caplog.records
    assert first.secret_hash not in repr(vars(record))


def test_a_file_that_is_missing_at_first_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TenantsError, match="kimi-serve keys create"):
        asyncio.run(FileKeys(tmp_path / "none").get("x"))


def test_a_database_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("not a database, and longer than a header of one hundred bytes" * 3)

    async def story() -> None:
        async with SqliteKeys(tmp_path / "keys"):
            pass

    with pytest.raises(TenantsError, match="not a database"):
        asyncio.run(story())


def test_a_database_is_read_while_another_process_writes(tmp_path: Path) -> None:
    async def story() -> None:
        first = key()
        async with SqliteKeys(tmp_path / "keys") as store:
            await store.put(first)
            writer = sqlite3.connect(tmp_path / "keys", isolation_level=None)
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("DELETE FROM keys")
            assert await store.get(first.id) == first
            writer.execute("ROLLBACK")
            writer.close()

    asyncio.run(story())


def test_gateways_on_one_database_add_up_what_an_account_spends(tmp_path: Path) -> None:
    async def story() -> None:
        may, june = ("account", "2031-05"), ("account", "2031-06")
        async with SqliteKeys(tmp_path / "keys") as ours, SqliteKeys(tmp_path / "keys") as theirs:

            async def spend(store: SqliteKeys) -> None:
                for _ in range(20):
                    await store.spend({may: 3, june: -1})

            await asyncio.gather(spend(ours), spend(theirs))
            assert await ours.spend({may: 0, june: 0}) == {may: 120, june: -40}
        async with SqliteKeys(tmp_path / "keys") as after:
            assert await after.spend({may: 1}) == {may: 121}

    asyncio.run(story())


def test_the_environment_holds_what_a_file_does() -> None:
    full = full_key()
    store = EnvironmentKeys({"KIMI_SERVE_KEYS": dumps([full])})
    assert asyncio.run(store.get(full.id)) == full
    assert asyncio.run(store.all()) == [full]


def test_an_environment_without_keys_is_an_error() -> None:
    with pytest.raises(TenantsError, match="KIMI_SERVE_KEYS is not set"):
        EnvironmentKeys({})


SECRET_HASH = key().secret_hash
GOOD = {"id": "a", "tenant": "acme", "secret_hash": SECRET_HASH, "created": "2031-05-04T00:00:00+00:00"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scopes": ["chatt"]}, "scopes: expected one of chat"),
        ({"scopes": "chat"}, "scopes: expected a list"),
        ({"models": [1]}, "models: expected a list of texts"),
        ({"expires": "tomorrow"}, "expires: expected a time"),
        ({"expires": "2031-05-04T00:00:00"}, "without its zone"),
        ({"limits": {"tokens": 5}}, "limits: unknown field 'tokens'"),
        ({"limits": {"tokens_per_minute": -1}}, "tokens_per_minute: expected a whole number"),
        ({"limits": {"tokens_per_minute": True}}, "tokens_per_minute: expected a whole number"),
        ({"priority": "urgent"}, "priority: expected one of high, normal, low"),
        ({"secret": "x"}, "unknown field 'secret'"),
        ({"tenant": ""}, "tenant: expected text"),
        ({"secret_hash": "$2b$12$abc"}, "secret_hash is not an argon2id hash"),
    ],
)
def test_a_malformed_record_is_refused_by_name_without_its_hash(change: dict[str, object], said: str) -> None:
    with pytest.raises(TenantsError, match=r"^here: keys") as refused:
        loads(json.dumps({"keys": [{**GOOD, **change}]}), "here")
    assert said in str(refused.value)
    assert SECRET_HASH not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": {}}', '{"keys": [], "more": 1}', '{"keys": [5]}'])
def test_a_text_that_is_no_list_of_keys_is_refused(text: str) -> None:
    with pytest.raises(TenantsError, match=r"^here"):
        loads(text, "here")


def test_one_id_twice_is_refused() -> None:
    with pytest.raises(TenantsError, match="twice"):
        loads(json.dumps({"keys": [GOOD, GOOD]}), "here")


@pytest.mark.parametrize("name", list(GOOD))
def test_a_record_without_a_needed_field_is_refused(name: str) -> None:
    record = {field: value for field, value in GOOD.items() if field != name}
    with pytest.raises(TenantsError, match=f"{name} is missing"):
        loads(json.dumps({"keys": [record]}), "here")


def test_a_salt_is_the_same_for_ever_and_another_for_each_tenant_and_secret() -> None:
    salts = {cache_salt(tenant, secret) for tenant in ("acme", "acme ", "") for secret in (b"a" * 16, b"b" * 100)}
    assert len(salts) == 6
    # Of this code on the day that it was written: engines lose their caches when it changes.
    assert cache_salt("acme", b"a" * 16) == "977af421cc1bbb1d26688a591206a2baa636ed82b73e931168f051dc67c14712"


def test_a_short_secret_makes_no_salt() -> None:
    with pytest.raises(TenantsError, match="at least 16"):
        cache_salt("acme", b"short")
