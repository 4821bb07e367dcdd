"""OpenAI's batches: ordered, listed, looked at, cancelled. Knows paths and fields; running them is a neighbour's."""

from __future__ import annotations

import time
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from kimi_serve.gateway import body
from kimi_serve.gateway.answer import caller_of
from kimi_serve.gateway.batches.records import Batch, Order, new_batch_id, read_order
from kimi_serve.gateway.batches.runner import Runner
from kimi_serve.gateway.files.records import StoredFile, new_file_id
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.identity import Caller
from kimi_serve.gateway.routes import schemas
from kimi_serve.gateway.routes.asked import archive_of, limit_of
from kimi_serve.gateway.routes.documented import errors, gives, takes
from kimi_serve.protocol import chat
from kimi_serve.protocol.errors import ApiError

_MOST: Final = 100
_PAGE: Final = 20
_NAMED: Final = schemas.names("batch_id")

router = APIRouter()


@router.post("/v1/batches", responses=errors() | gives(schemas.BATCH, "The batch"), openapi_extra=takes(schemas.ORDER))
async def create_batch(request: Request) -> JSONResponse:
    """Answers every line of a file, behind the requests that come meanwhile."""
    gateway: Gateway = request.state.gateway
    archive, runner = archive_of(request), _runner(request)
    caller = await caller_of(request, "chat")
    with gateway.ledger.body(caller.tenant) as reservation:
        raw = await body.read(request, reservation, gateway.settings.body)
        order = read_order(chat.parse_object(raw), gateway.settings.batches)
    file = await archive.files.get(caller.tenant, order.input_file, "input_file_id")
    if file.purpose != "batch":
        what = f"input_file_id: the file's purpose is {file.purpose!r}; expected one with purpose 'batch'"
        raise ApiError("invalid_value", what, param="input_file_id")
    batch = _new(order, file, caller)
    await archive.batches.add(batch, gateway.settings.batches.per_tenant)
    runner.start(batch)
    return JSONResponse(batch.shown())


@router.get(
    "/v1/batches", responses=errors() | gives(schemas.BATCHES, "The batches"), openapi_extra=schemas.pages(_MOST)
)
async def list_batches(request: Request) -> JSONResponse:
    """The batches of the key's tenant, the newest first."""
    store = archive_of(request).batches
    caller = await caller_of(request, "chat")
    limit = limit_of(request, _PAGE, _MOST)
    found = await store.list(caller.tenant, after=request.query_params.get("after"), limit=limit + 1)
    shown = [batch.shown() for batch in found[:limit]]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return JSONResponse({"object": "list", "data": shown, **ends, "has_more": len(found) > limit})


@router.get("/v1/batches/{batch_id}", responses=errors() | gives(schemas.BATCH, "The batch"), openapi_extra=_NAMED)
async def retrieve_batch(request: Request) -> JSONResponse:
    """How far a batch is."""
    store = archive_of(request).batches
    caller = await caller_of(request, "chat")
    return JSONResponse((await store.get(caller.tenant, request.path_params["batch_id"])).shown())


@router.post(
    "/v1/batches/{batch_id}/cancel", responses=errors() | gives(schemas.BATCH, "The batch"), openapi_extra=_NAMED
)
async def cancel_batch(request: Request) -> JSONResponse:
    """Ends a batch; the answers that it has are in its output file."""
    store, runner = archive_of(request).batches, _runner(request)
    caller = await caller_of(request, "chat")
    batch = await store.cancel(caller.tenant, request.path_params["batch_id"])
    runner.cancelled(batch.id)
    return JSONResponse(batch.shown())


def _runner(request: Request) -> Runner:
    runner: Runner | None = request.state.runner
    assert runner is not None, "an archive has one"
    return runner


def _new(order: Order, file: StoredFile, caller: Caller) -> Batch:
    now = int(time.time())
    return Batch(
        id=new_batch_id(),
        tenant=caller.tenant,
        key=None if caller.key is None else caller.key.id,
        endpoint=order.endpoint,
        input_file=file.id,
        input_hash=file.hash,
        completion_window=order.completion_window,
        metadata=order.metadata,
        output_expires=order.output_expires,
        output_file=new_file_id(),
        error_file=new_file_id(),
        status="validating",
        created=now,
        expires=now + order.window_s,
        ended=None,
        times={},
        problems=None,
        total=0,
        completed=0,
        failed=0,
        has_output=False,
        has_errors=False,
    )
