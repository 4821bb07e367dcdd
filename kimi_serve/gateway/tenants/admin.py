"""What an operator does with keys: make, list, revoke, rotate. Knows records; writes to no store and prints nothing."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from argon2 import PasswordHasher

from kimi_serve.gateway.priority import Priority
from kimi_serve.gateway.tenants.keys import HASHER, Key, PlainKey, Scope, new_plain_key
from kimi_serve.gateway.tenants.limits import UNLIMITED, Limits


@dataclass(frozen=True, slots=True)
class Made:
    """A new record, and the key itself: this is the only time that it exists."""

    key: Key
    plain: PlainKey

    def shown(self) -> str:
        return f"{self.plain.reveal()}\n\nKeep it now: it cannot be shown again. Its id is {self.key.id}."


def create(
    tenant: str,
    now: datetime,
    *,
    name: str = "",
    expires: datetime | None = None,
    scopes: Iterable[Scope] = ("chat", "tokenize", "models"),
    models: Iterable[str] = ("*",),
    limits: Limits = UNLIMITED,
    priority: Priority = "normal",
    hasher: PasswordHasher = HASHER,
) -> Made:
    plain = new_plain_key()
    key = Key(
        id=plain.id,
        tenant=tenant,
        secret_hash=hasher.hash(plain.secret),
        created=now,
        account=plain.id,
        name=name,
        expires=expires,
        scopes=frozenset(scopes),
        models=tuple(models),
        limits=limits,
        priority=priority,
    )
    return Made(key, plain)


def revoke(key: Key, now: datetime) -> Key:
    """A key that was revoked before stays revoked since then."""
    return key if key.revoked is not None else replace(key, revoked=now)


def rotate(key: Key, now: datetime, grace: timedelta, hasher: PasswordHasher = HASHER) -> tuple[Made, Key]:
    """A new key with all that the old one had, its account included, and the old one, which ends after `grace`."""
    plain = new_plain_key()
    new = replace(key, id=plain.id, secret_hash=hasher.hash(plain.secret), created=now, revoked=None)
    ends = now + grace
    return Made(new, plain), replace(key, expires=ends if key.expires is None else min(ends, key.expires))


def listing(keys: Iterable[Key], now: datetime) -> str:
    """A line for each key, by tenant and age; no hash."""
    rows = [("id", "tenant", "name", "state", "created", "expires", "scopes", "models", "priority", "limits")]
    for key in sorted(keys, key=lambda key: (key.tenant, key.created, key.id)):
        limits = " ".join(f"{name}={value}" for name, value in asdict(key.limits).items() if value is not None)
        expires = f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never"
        scopes, models = ",".join(sorted(key.scopes)), ",".join(key.models)
        facts = (key.id, key.tenant, key.name or "-", state(key, now), f"{key.created:%Y-%m-%d %H:%M}", expires)
        rows.append((*facts, scopes, models, key.priority, limits or "none"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def state(key: Key, now: datetime) -> str:
    if key.revoked is not None:
        return "revoked"
    return "active" if key.is_usable(now) else "expired"
