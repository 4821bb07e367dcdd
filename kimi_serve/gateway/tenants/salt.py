"""A tenant's own prefix cache: a salt that engines mix into the hash of a prompt's first block. Knows no engine."""

from functools import lru_cache
from hashlib import blake2b

from kimi_serve.gateway.tenants.errors import TenantsError

LEAST_SECRET_BYTES = 16


@lru_cache(maxsize=1024)
def cache_salt(tenant: str, secret: bytes) -> str:
    """One for each tenant, the same for ever; who knows the tenant's name but not the secret cannot guess it."""
    if len(secret) < LEAST_SECRET_BYTES:
        raise TenantsError(f"cache salt: the secret has {len(secret)} bytes; at least {LEAST_SECRET_BYTES} are needed")
    key = blake2b(secret, person=b"kimi salt secret").digest()  # a secret of any length as a key of 64 bytes
    return blake2b(tenant.encode(), key=key, digest_size=32, person=b"kimi cache salt").hexdigest()
