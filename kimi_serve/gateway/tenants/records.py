"""Key records as JSON. Knows every field's form; knows no file. Its errors name fields and ids, never values."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Final

from kimi_serve.gateway.priority import PRIORITIES
from kimi_serve.gateway.tenants.errors import TenantsError
from kimi_serve.gateway.tenants.keys import SCOPES, Key
from kimi_serve.gateway.tenants.limits import Limits

_FIELDS: Final = {field.name for field in fields(Key)}
_LIMITS: Final = {field.name for field in fields(Limits)}
_NEEDED: Final = ("id", "tenant", "secret_hash", "created")


def dumps(keys: Iterable[Key]) -> str:
    return json.dumps({"keys": [to_json(key) for key in keys]}, indent=2) + "\n"


def loads(text: str, source: str) -> dict[str, Key]:
    """By id. `source` is what errors call the text."""
    try:
        document = json.loads(text)
    except ValueError:
        # Not chained: the parser's error carries the whole text, with every hash.
        raise TenantsError(f"{source}: is not JSON") from None
    listed = document.get("keys") if isinstance(document, dict) and set(document) == {"keys"} else None
    if not isinstance(listed, list):
        raise TenantsError(f'{source}: expected an object {{"keys": [...]}} and nothing beside it')
    keys: dict[str, Key] = {}
    for position, record in enumerate(listed):
        key = from_json(record, f"{source}: keys[{position}]")
        if key.id in keys:
            raise TenantsError(f"{source}: keys[{position}]: id {key.id!r} is there twice")
        keys[key.id] = key
    return keys


def to_json(key: Key) -> dict[str, object]:
    """What differs from the defaults is written, and nothing else."""
    record: dict[str, object] = {
        "id": key.id,
        "tenant": key.tenant,
        "secret_hash": key.secret_hash,
        "created": key.created.isoformat(),
        "name": key.name or None,
        "account": key.account if key.account != key.id else None,
        "expires": key.expires and key.expires.isoformat(),
        "revoked": key.revoked and key.revoked.isoformat(),
        "scopes": sorted(key.scopes),
        "models": list(key.models),
        "limits": {name: value for name, value in asdict(key.limits).items() if value is not None} or None,
        "priority": key.priority,
    }
    return {name: value for name, value in record.items() if value is not None}


def from_json(record: object, source: str) -> Key:
    if not isinstance(record, dict):
        raise TenantsError(f"{source}: expected an object")
    if unknown := record.keys() - _FIELDS:
        raise TenantsError(f"{source}: unknown field {min(unknown)!r}; a key has {', '.join(sorted(_FIELDS))}")
    for name in _NEEDED:
        if name not in record:
            raise TenantsError(f"{source}: {name} is missing")
    key_id = _text(record, "id", source)
    secret_hash = _text(record, "secret_hash", source)
    if not secret_hash.startswith("$argon2id$"):
        raise TenantsError(f"{source}: secret_hash is not an argon2id hash; keys are made by `kimi-serve keys create`")
    optional: dict[str, object] = {}
    if "name" in record:
        optional["name"] = _text(record, "name", source)
    for name in ("expires", "revoked"):
        if record.get(name) is not None:
            optional[name] = _time(record, name, source)
    if "scopes" in record:
        optional["scopes"] = frozenset(_words(record, "scopes", source, SCOPES))
    if "models" in record:
        optional["models"] = tuple(_words(record, "models", source))
    if "limits" in record:
        optional["limits"] = limits_from(record["limits"], source)
    if "priority" in record:
        optional["priority"] = _one_of(record["priority"], PRIORITIES, f"{source}: priority")
    return Key(
        id=key_id,
        tenant=_text(record, "tenant", source),
        secret_hash=secret_hash,
        created=_time(record, "created", source),
        account=_text(record, "account", source) if "account" in record else key_id,
        **optional,  # type: ignore[arg-type]  # each was checked by name above
    )


def limits_from(found: object, source: str) -> Limits:
    if not isinstance(found, dict):
        raise TenantsError(f"{source}: limits: expected an object")
    if unknown := found.keys() - _LIMITS:
        raise TenantsError(f"{source}: limits: unknown field {min(unknown)!r}; there are {', '.join(sorted(_LIMITS))}")
    for name, value in found.items():
        if value is not None and (type(value) is not int or value < 0):
            raise TenantsError(f"{source}: limits: {name}: expected a whole number, 0 or more, or null")
    return Limits(**found)


def _text(record: Mapping[str, object], name: str, source: str) -> str:
    value = record[name]
    if not isinstance(value, str) or (not value and name != "name"):
        raise TenantsError(f"{source}: {name}: expected text")
    return value


def _time(record: Mapping[str, object], name: str, source: str) -> datetime:
    try:
        moment = datetime.fromisoformat(_text(record, name, source))
    except ValueError:
        raise TenantsError(f"{source}: {name}: expected a time such as 2031-05-04T00:00:00+00:00") from None
    if moment.tzinfo is None:
        raise TenantsError(f"{source}: {name}: a time without its zone; write +00:00 behind it")
    return moment.astimezone(UTC)


def _words(record: Mapping[str, object], name: str, source: str, known: tuple[str, ...] | None = None) -> list[str]:
    value = record[name]
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise TenantsError(f"{source}: {name}: expected a list of texts")
    if known is not None:
        for word in value:
            _one_of(word, known, f"{source}: {name}")
    return value


def _one_of(value: object, known: tuple[str, ...], source: str) -> str:
    if value not in known:
        raise TenantsError(f"{source}: expected one of {', '.join(known)}")
    assert isinstance(value, str)
    return value
