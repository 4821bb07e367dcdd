"""Where key records are kept, as a protocol. Knows no place; each place has its own file here."""

from typing import Protocol

from kimi_serve.gateway.tenants.keys import Key


class KeyStore(Protocol):
    async def get(self, key_id: str) -> Key | None:
        """The record of now. Raises TenantsError where the store cannot be read."""

    async def all(self) -> list[Key]: ...


class WritableKeyStore(KeyStore, Protocol):
    async def put(self, key: Key) -> None:
        """Add the record, or replace the one of the same id."""
