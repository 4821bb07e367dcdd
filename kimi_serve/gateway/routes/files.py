"""OpenAI's files: sent, listed, looked at, read, deleted. Knows paths and fields; the folder is a neighbour's."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from kimi_serve.gateway.answer import caller_of
from kimi_serve.gateway.files import upload
from kimi_serve.gateway.files.records import PURPOSES, file_not_found
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.routes import schemas
from kimi_serve.gateway.routes.asked import archive_of, choice_of, limit_of
from kimi_serve.gateway.routes.documented import Responses, errors, gives

_MOST: Final = 10_000
_ORDERS: Final = ("asc", "desc")
_FORM: Final = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schemas.UPLOAD}}}}
_LISTED: Final = schemas.pages(
    _MOST, order={"type": "string", "enum": list(_ORDERS)}, purpose={"type": "string", "enum": list(PURPOSES)}
)
_BYTES: Final[Responses] = {200: {"description": "The bytes", "content": {"application/octet-stream": {}}}}
_NAMED: Final = schemas.names("file_id")

router = APIRouter()


@router.post("/v1/files", responses=errors() | gives(schemas.FILE, "The file"), openapi_extra=_FORM)
async def create_file(request: Request) -> JSONResponse:
    """Keeps a file, to be named by its id where a picture or a batch's input can stand."""
    gateway: Gateway = request.state.gateway
    store = archive_of(request).files
    caller = await caller_of(request, "chat")
    with gateway.ledger.body(caller.tenant) as reservation, request.state.journey.enter("body"):
        receiving = upload.receive(request, store, caller.tenant, reservation, gateway.settings.files)
        file = await gateway.leaving.bounded(receiving)
    gateway.metrics.uploaded_files.inc()
    gateway.metrics.uploaded_bytes.inc(file.bytes)
    return JSONResponse(file.shown())


@router.get("/v1/files", responses=errors() | gives(schemas.FILES, "The files"), openapi_extra=_LISTED)
async def list_files(request: Request) -> JSONResponse:
    """The files of the key's tenant, the newest first unless `order` is `asc`."""
    store = archive_of(request).files
    caller = await caller_of(request, "chat")
    limit = limit_of(request, _MOST, _MOST)
    found = await store.list(
        caller.tenant,
        purpose=choice_of(request, "purpose", PURPOSES),
        after=request.query_params.get("after"),
        limit=limit + 1,
        is_rising=choice_of(request, "order", _ORDERS) == "asc",
    )
    shown = [file.shown() for file in found[:limit]]
    return JSONResponse({"object": "list", "data": shown, "has_more": len(found) > limit})


@router.get("/v1/files/{file_id}", responses=errors() | gives(schemas.FILE, "The file"), openapi_extra=_NAMED)
async def retrieve_file(request: Request) -> JSONResponse:
    """What is known of a file."""
    store = archive_of(request).files
    caller = await caller_of(request, "chat")
    return JSONResponse((await store.get(caller.tenant, request.path_params["file_id"])).shown())


@router.get("/v1/files/{file_id}/content", responses=errors() | _BYTES, openapi_extra=_NAMED, response_class=Response)
async def file_content(request: Request) -> Response:
    """A file's bytes, as they were sent."""
    store = archive_of(request).files
    caller = await caller_of(request, "chat")
    file = await store.get(caller.tenant, request.path_params["file_id"])
    path = store.path(file.hash)
    if not path.is_file():
        raise file_not_found(file.id)
    # Never shown by a browser in our name, whatever it holds.
    headers = {"x-content-type-options": "nosniff"}
    return FileResponse(path, headers=headers, media_type="application/octet-stream", filename=file.filename)


@router.delete("/v1/files/{file_id}", responses=errors() | gives(schemas.DELETED, "It is gone"), openapi_extra=_NAMED)
async def delete_file(request: Request) -> JSONResponse:
    """Forgets a file. A batch that has begun to read it goes on."""
    store = archive_of(request).files
    caller = await caller_of(request, "chat")
    file_id = request.path_params["file_id"]
    await store.delete(caller.tenant, file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})
