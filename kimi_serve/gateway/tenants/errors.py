"""What can go wrong with the operator's side of keys. Knows no client: refusals to clients are ApiError."""

from kimi_serve.errors import KimiServeError


class TenantsError(KimiServeError, ValueError):
    """A key record, a key store or a secret in the settings is missing or malformed. Never holds a secret."""


class AwayError(TenantsError):
    """A store of keys does not answer; later it may."""


class CountersError(KimiServeError):
    """Shared counters did not answer in time, or not with an answer."""
