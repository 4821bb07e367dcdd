"""What a key is: its text, its record, what it may do. Knows neither stores nor the cost of a check.

A key reads `ksk_<id>_<secret>`: the constant prefix lets scanners find one that leaked, the id finds its record, and
of the secret only an argon2id hash is kept.
"""

import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Final, Literal, get_args

from argon2 import PasswordHasher

from kimi_serve.gateway.priority import Priority
from kimi_serve.gateway.tenants.limits import UNLIMITED, Limits
from kimi_serve.protocol.errors import ApiError

Scope = Literal["chat", "embeddings", "tokenize", "models", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

PREFIX: Final = "ksk"
ID_LENGTH: Final = 12
SECRET_LENGTH: Final = 43  # 32 bytes in base 62
# The secret is 256 random bits, which nobody guesses; time and memory are for the day the random source proves weak.
HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY: Final = re.compile(rf"{PREFIX}_([0-9A-Za-z]{{{ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH}}})")
# Wider than _KEY: a key that was cut or pasted with an error is still almost a secret.
_LEAK: Final = re.compile(rf"({PREFIX}_[0-9A-Za-z]+_)[0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class PlainKey:
    """A key with its secret. Its repr shows the id alone."""

    id: str
    secret: str = field(repr=False)

    def reveal(self) -> str:
        """The whole key: for the eyes of who made it, once."""
        return f"{PREFIX}_{self.id}_{self.secret}"


@dataclass(frozen=True, slots=True)
class Key:
    """The record of a key, as stores keep it."""

    id: str
    tenant: str
    secret_hash: str = field(repr=False)  # argon2id, in its encoded form
    created: datetime
    account: str  # what its limits are counted under: its own id, or that of the key that it was rotated from
    name: str = ""
    expires: datetime | None = None
    revoked: datetime | None = None
    scopes: frozenset[Scope] = frozenset({"chat", "tokenize", "models"})
    models: tuple[str, ...] = ("*",)  # globs
    limits: Limits = UNLIMITED
    priority: Priority = "normal"

    def is_usable(self, now: datetime) -> bool:
        """`revoked` says when it was: a clock that jumps back brings no key back."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def allows(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)


def new_plain_key() -> PlainKey:
    return PlainKey(_base62(secrets.token_bytes(9))[-ID_LENGTH:], _base62(secrets.token_bytes(32)))


def parse(text: str) -> PlainKey | None:
    """None where the text has not the form of a key."""
    match = _KEY.fullmatch(text)
    return PlainKey(match[1], match[2]) if match else None


def require_scope(key: Key, scope: Scope) -> None:
    if scope not in key.scopes:
        raise ApiError("scope_missing", f"This key has no scope {scope!r}; it has: {', '.join(sorted(key.scopes))}.")


def require_model(key: Key, model: str) -> None:
    if not key.allows(model):
        raise ApiError(
            "model_not_allowed", f"This key may not use that model; it may use: {', '.join(key.models)}.", param="model"
        )


def redacted(text: str) -> str:
    """The text with the secrets of all keys in it struck out: for logs of what others wrote."""
    return _LEAK.sub(r"\1***", text)


def _base62(data: bytes) -> str:
    """As many digits for all data of one length."""
    number, digits = int.from_bytes(data), []
    for _ in range(-(-len(data) * 8 * 1000 // 5954)):  # log2(62) is a little over 5.954
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
