"""Keys from an environment variable, for containers. Knows the text of a keys file; cannot write."""

import os
from collections.abc import Mapping

from kimi_serve.gateway.tenants.errors import TenantsError
from kimi_serve.gateway.tenants.keys import Key
from kimi_serve.gateway.tenants.records import loads

VARIABLE = "KIMI_SERVE_KEYS"


class EnvironmentKeys:
    """Read once: a process's environment does not change under it."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        if VARIABLE not in environ:
            raise TenantsError(f'{VARIABLE} is not set; it holds what a keys file does: {{"keys": [...]}}')
        self._keys = loads(environ[VARIABLE], VARIABLE)

    async def get(self, key_id: str) -> Key | None:
        return self._keys.get(key_id)

    async def all(self) -> list[Key]:
        return list(self._keys.values())
