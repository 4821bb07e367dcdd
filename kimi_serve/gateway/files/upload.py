"""A client's file, from its connection to the folder. Knows the request's limits; never what the bytes are."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request

from kimi_serve.gateway.admission.ledger import Reservation
from kimi_serve.gateway.files.form import Form
from kimi_serve.gateway.files.records import Purpose, StoredFile, lifetime, name_of, purpose_of
from kimi_serve.gateway.files.store import FileStore, Upload
from kimi_serve.gateway.settings import FileSettings
from kimi_serve.gateway.streaming import ClientGoneError
from kimi_serve.protocol.errors import ApiError

_AT_ONCE: Final = 1 << 20  # bytes that are written together
_AROUND: Final = 1 << 17  # bytes of a form beside its file
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS: Final = ("purpose", _ANCHOR, _SECONDS)


async def receive(
    request: Request, store: FileStore, tenant: str, reservation: Reservation, rules: FileSettings
) -> StoredFile:
    """The file that was sent. ApiError: invalid_upload, invalid_value, body_timeout, and those of Upload.write."""
    form = Form(request.headers.get("content-type"))
    announced = request.headers.get("content-length", "")
    if announced.isdigit():  # what stands around the file is not the file's: this refuses only what cannot fit
        store.room.require(tenant, 0, max(0, int(announced) - _AROUND), files=1)
    async with store.receive(tenant) as upload:
        try:
            async with asyncio.timeout(rules.timeout_s):
                await _read(request, form, upload, reservation)
        except TimeoutError as error:
            message = f"the file did not arrive within {rules.timeout_s:g} seconds; send it faster or make it smaller"
            raise ApiError("body_timeout", message) from error
        request.scope["state"]["body_is_read"] = True
        form.end()
        return await upload.keep(_purpose(form), name_of(form.filename or ""), _lifetime(form))


async def _read(request: Request, form: Form, upload: Upload, reservation: Reservation) -> None:
    """What is here and not yet on the disk is in memory, and counts like a body. Reads no faster than it is written."""
    waiting, has_more, read = bytearray(), True, 0
    while has_more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        data, has_more = message.get("body", b""), message.get("more_body", False)
        read += len(data)
        reservation.reserve(len(data))
        for part in form.feed(data):
            waiting += part
        # The parser may have held back what looked like a boundary, and hand it on with a later part.
        reservation.release(max(0, reservation.held - len(waiting)))
        if read - upload.counted - len(waiting) > _AROUND:
            raise ApiError("invalid_upload", f"the form holds more than {_AROUND} bytes beside its file")
        _refuse_early(form)
        if len(waiting) >= _AT_ONCE or not has_more:
            await upload.write(bytes(waiting))
            waiting.clear()
            reservation.release(reservation.held)


def _refuse_early(form: Form) -> None:
    """What is wrong with the fields is said as soon as they are here, which most clients send first."""
    for name in form.fields:
        if name not in _FIELDS:
            raise ApiError(
                "invalid_value", f"{name[:40]}: there is no such field; expected file and purpose", param="file"
            )
    if "purpose" in form.fields:
        _purpose(form)


def _purpose(form: Form) -> Purpose:
    if "purpose" not in form.fields:
        raise ApiError("invalid_value", "purpose: is missing; expected batch, vision or user_data", param="purpose")
    return purpose_of(form.fields["purpose"])


def _lifetime(form: Form) -> int | None:
    anchor, seconds = form.fields.get(_ANCHOR), form.fields.get(_SECONDS)
    if anchor is None and seconds is None:
        return None
    return lifetime(anchor, int(seconds) if seconds is not None and seconds.isdecimal() else seconds)
