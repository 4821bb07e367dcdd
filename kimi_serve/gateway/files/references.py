"""Files that a request names, as the bytes that it could have sent itself. Knows tenants; sees no picture."""

from __future__ import annotations

import asyncio

import pybase64

from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.files.store import FileStore
from kimi_serve.protocol import file_ids
from kimi_serve.protocol.chat import Json
from kimi_serve.protocol.errors import ApiError, short


async def fill_in(body: Json, store: FileStore | None, tenant: str, reservation: Reservation, most_bytes: int) -> bool:
    """Puts bytes in the place of every file id; whether there was any. Where no files are kept, nothing is changed.

    The bytes count as those of the body do, before they are read.
    ApiError: file_not_found, body_too_large, the ledger's.
    """
    if store is None:
        return False
    found = list(file_ids.of_body(body))
    for one in found:
        if not isinstance(one.id, str):
            what = f"{one.where}: {short(one.id)} is not supported; expected a file's id"
            raise ApiError("invalid_value", what, param=one.where)
        file = await store.get(tenant, one.id, one.where)
        size = -(-file.bytes // 3) * 4
        if reservation.held + size > most_bytes:
            what = f"{one.where}: with this file the request exceeds the limit of {most_bytes} bytes"
            raise ApiError("body_too_large", what, param=one.where)
        reservation.reserve(size)
        data = await store.read(file)
        one.fill(await asyncio.to_thread(pybase64.b64encode_as_string, data))
    return bool(found)
