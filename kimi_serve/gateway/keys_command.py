"""`kimi-serve keys`: make, list, revoke and rotate keys in a store. Knows arguments and stores; no request."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Final

from kimi_serve.errors import ConfigError
from kimi_serve.gateway.priority import PRIORITIES
from kimi_serve.gateway.settings import Keys, read
from kimi_serve.gateway.tenants import admin
from kimi_serve.gateway.tenants.keys import SCOPES, Key
from kimi_serve.gateway.tenants.limits import Limits
from kimi_serve.gateway.tenants.stores import WritableKeyStore
from kimi_serve.gateway.tenants.stores.file import FileKeys
from kimi_serve.gateway.tenants.stores.postgres import PostgresKeys
from kimi_serve.gateway.tenants.stores.sqlite import SqliteKeys

_PATIENCE_S: Final = 10.0  # with PostgreSQL: nobody else waits for a person


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--file", metavar="FILE", help="the file of keys (default: KIMI_SERVE_KEYS__FILE)")
    verb.add_argument("--sqlite", metavar="FILE", help="the database of keys (default: KIMI_SERVE_KEYS__SQLITE)")
    verb.add_argument(
        "--store", metavar="URL", help="postgresql://user:password@host/database (default: KIMI_SERVE_KEYS__POSTGRES)"
    )
    acts = verb.add_subparsers(dest="act", required=True, metavar="create|list|revoke|rotate|migrate")
    create = acts.add_parser("create", help="make a key; it is printed once")
    create.add_argument("tenant", help="whose key it is")
    create.add_argument("--name", default="", help="for people")
    create.add_argument("--days", type=float, help="it expires after so many days (default: never)")
    create.add_argument(
        "--scope", action="append", choices=SCOPES, help="may be repeated (default: chat, tokenize, models)"
    )
    create.add_argument(
        "--model", action="append", help="a glob of models that it may use; may be repeated (default: *)"
    )
    create.add_argument("--priority", choices=PRIORITIES, default="normal", help="the class in which it waits")
    for limit in fields(Limits):
        option = f"--{limit.name.replace('_', '-')}"
        create.add_argument(option, type=int, metavar="N", help="(default: unlimited)")
    acts.add_parser("list", help="show all keys, without secrets")
    revoke = acts.add_parser("revoke", help="refuse a key from now on")
    revoke.add_argument("id", help="the key's id: the part between the underscores")
    rotate = acts.add_parser("rotate", help="make a key that takes another's place; both work for the grace time")
    rotate.add_argument("id", help="the old key's id")
    acts.add_parser("migrate", help="make the tables that are missing; gateways do it too, where they have the right")
    rotate.add_argument("--grace-hours", type=float, default=24.0, help="the old key ends then (default: %(default)s)")


def run(options: argparse.Namespace) -> str:
    """Do it; what is to be shown."""
    return asyncio.run(_run(options, datetime.now(UTC)))


async def _run(options: argparse.Namespace, now: datetime) -> str:
    async with AsyncExitStack() as stack:
        store = await _store(options, stack)
        if options.act == "migrate":
            return "the tables are there"  # opening it has made them
        if options.act == "list":
            return admin.listing(await store.all(), now)
        if options.act == "create":
            made = _create(options, now)
            await store.put(made.key)
            return made.shown()
        key = await _found(store, options.id)
        if options.act == "revoke":
            await store.put(admin.revoke(key, now))
            return f"{key.id}: revoked; gateways refuse it within seconds"
        made, old = admin.rotate(key, now, timedelta(hours=options.grace_hours))
        await store.put(made.key)
        await store.put(old)
        return made.shown()


async def _store(options: argparse.Namespace, stack: AsyncExitStack) -> WritableKeyStore:
    options_of = {"file": "file", "sqlite": "sqlite", "postgres": "store"}
    given = {name: value for name, option in options_of.items() if (value := getattr(options, option))}
    keys = Keys(**given) if given else read(None).keys
    if sum(place is not None for place in (keys.file, keys.sqlite, keys.postgres)) != 1:
        raise ConfigError("keys: expected one of --file, --sqlite and --store, or one of them in the environment")
    if keys.file is not None:
        return FileKeys(keys.file)
    if keys.sqlite is not None:
        return await stack.enter_async_context(SqliteKeys(keys.sqlite))
    assert keys.postgres is not None
    store = PostgresKeys(keys.postgres.get_secret_value(), timeout=_PATIENCE_S)
    return await stack.enter_async_context(store)


async def _found(store: WritableKeyStore, key_id: str) -> Key:
    key = await store.get(key_id)
    if key is None:
        raise ConfigError(f"id: there is no key {key_id!r}; `kimi-serve keys list` shows those there are")
    return key


def _create(options: argparse.Namespace, now: datetime) -> admin.Made:
    limits = Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)})
    return admin.create(
        options.tenant,
        now,
        name=options.name,
        expires=None if options.days is None else now + timedelta(days=options.days),
        scopes=options.scope or ("chat", "tokenize", "models"),
        models=options.model or ("*",),
        limits=limits,
        priority=options.priority,
    )
