"""The active check, over a real socket."""

import asyncio
import json
from collections.abc import Mapping

import aiohttp
import pytest
from aiohttp import web

from kimi_serve.gateway.replicas.health import Finding, check

INFO = {"model_class": "kimi_serve.model.kimi_vl:KimiVLForConditionalGeneration"}
MODELS = {"data": [{"id": "kimi", "max_model_len": 4096}, {"id": "adapter", "max_model_len": None}]}
SOUND = {"/health": "", "/plugins/kimi_serve/info": json.dumps(INFO), "/v1/models": json.dumps(MODELS)}


def found(answers: Mapping[str, str | int], *, delay_s: float = 0.0) -> Finding:
    """What a check finds at an engine that answers so: a text, or a status."""

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(delay_s)
        told = answers[request.path]
        return web.Response(status=told) if isinstance(told, int) else web.Response(text=told)

    async def scenario() -> Finding:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with aiohttp.ClientSession() as session:
                return await check(
                    session, f"http://127.0.0.1:{runner.addresses[0][1]}", timeout_s=0.5 if delay_s else 5
                )
        finally:
            await runner.cleanup()

    return asyncio.run(scenario())


def test_an_engine_that_runs_our_class_is_well_and_says_what_it_serves() -> None:
    assert found(SOUND) == Finding(None, {"kimi": 4096, "adapter": 4096})


@pytest.mark.parametrize(
    ("told", "start", "size"),
    [
        ({"instance": "a", "image_cache_bytes": 7}, "a", 7),
        ({}, None, None),
        ({"instance": 1, "image_cache_bytes": "x"}, None, None),
    ],
)
def test_an_engine_says_which_start_it_is_and_what_it_caches(
    told: dict[str, object], start: str | None, size: int | None
) -> None:
    finding = found({**SOUND, "/plugins/kimi_serve/info": json.dumps({**INFO, **told})})
    assert (finding.problem, finding.instance, finding.image_cache_bytes) == (None, start, size)


@pytest.mark.parametrize(("told", "known"), [(16, 16), (None, None), (0, None), ("16", None), (True, None)])
def test_an_engine_says_how_many_requests_it_computes_at_once(told: object, known: int | None) -> None:
    info = json.dumps({**INFO, "max_running_requests": told})
    assert found({**SOUND, "/plugins/kimi_serve/info": info}).max_running_requests == known


@pytest.mark.parametrize("path", list(SOUND))
@pytest.mark.parametrize("status", [301, 404, 503])
def test_each_route_must_answer_200(path: str, status: int) -> None:
    problem = found({**SOUND, path: status}).problem
    assert problem is not None
    assert f"{path} answered {status}" in problem


@pytest.mark.parametrize(
    "info",
    [
        {"model_class": "vllm.model_executor.models.kimi_vl:KimiVLForConditionalGeneration"},
        {"model_class": "kimi_serve.modelling:Fake"},
        {"model_class": None},
        {},
        [],
    ],
)
def test_an_engine_that_runs_another_class_is_not_ready(info: object) -> None:
    problem = found({**SOUND, "/plugins/kimi_serve/info": json.dumps(info)}).problem
    assert problem is not None
    assert "model_class" in problem


@pytest.mark.parametrize(
    "listing",
    ["", "no json", "{}", '{"data": []}', '{"data": [1]}', '{"data": [{"id": "kimi"}]}', '{"data": "kimi"}', "\\xff"],
)
def test_a_listing_that_cannot_be_read_is_a_problem_and_no_exception(listing: str) -> None:
    assert found({**SOUND, "/v1/models": listing}).problem


def test_an_engine_that_hangs_is_a_problem_after_the_timeout() -> None:
    assert "TimeoutError" in (found(SOUND, delay_s=1.5).problem or "")


def test_an_engine_that_is_not_there_is_a_problem() -> None:
    async def scenario() -> Finding:
        async with aiohttp.ClientSession() as session:
            return await check(session, "http://127.0.0.1:1", timeout_s=5)

    assert asyncio.run(scenario()).problem


def test_an_engine_that_hangs_up_is_a_problem() -> None:
    async def scenario() -> Finding:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        async with server, aiohttp.ClientSession() as session:
            return await check(session, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=5)

    assert asyncio.run(scenario()).problem
