"""The connection to an engine over real sockets: what it sends, how it fails, and how it ends."""

import asyncio
import contextlib
import gc
import json
import socket
import time
from collections.abc import Iterator

import pytest

from kimi_serve.gateway.upstream import Timeouts, Upstream, UpstreamError
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import Served, in_thread

CHAT = "/v1/chat/completions"
STREAM = b'{"stream":true}'


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeEngine, Served]]:
    engine = FakeEngine()
    with in_thread(engine) as served:
        yield engine, served


@pytest.fixture
def engine(running: tuple[FakeEngine, Served]) -> FakeEngine:
    engine, _ = running
    engine.dials = Dials()
    engine.record.clear()
    return engine


@pytest.fixture
def url(running: tuple[FakeEngine, Served], engine: FakeEngine) -> str:
    return running[1].url


def local(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def dialled(**dials: object) -> dict[str, str]:
    return {"x-fake-engine": json.dumps(dials)}


async def ask(url: str, body: bytes | None = STREAM, limits: Timeouts | None = None, **dials: object) -> bytes:
    async with Upstream(limits) as upstream, upstream.open(url, CHAT, body, dialled(**dials)) as response:
        return await response.read()


def failure(url: str, limits: Timeouts | None = None, **dials: object) -> UpstreamError:
    with pytest.raises(UpstreamError) as failed:
        asyncio.run(ask(url, limits=limits, **dials))
    return failed.value


async def aborts(engine: FakeEngine) -> float:
    """Seconds from now until the engine has noticed that its client left."""
    began = time.monotonic()
    while not engine.record.aborts:
        assert time.monotonic() - began < 30, "the engine did not notice"
        await asyncio.sleep(0.005)
    return engine.record.aborts[0].at - began


def test_the_body_and_the_headers_arrive_as_they_were_given(url: str, engine: FakeEngine) -> None:
    body = b'{ "stream" :true}'
    asyncio.run(ask(url, body, tokens=1))
    (received,) = engine.record.requests
    assert received.body == body
    assert {name for name, _ in received.headers} == {b"host", b"content-length", b"x-fake-engine"}


def test_a_body_of_megabytes_arrives_whole_and_with_its_length(url: str, engine: FakeEngine) -> None:
    body = b'{"stream":true,"image":"' + b"A" * (9 << 20) + b'"}'
    asyncio.run(ask(url, body, tokens=1))
    (received,) = engine.record.requests
    assert received.body == body
    assert received.header("content-length") == str(len(body))


def test_a_status_is_an_answer_and_no_failure(url: str) -> None:
    async def status() -> tuple[int, bytes]:
        async with Upstream() as upstream, upstream.open(url, CHAT, STREAM, dialled(fail="503")) as response:
            return response.status, await response.read()

    code, body = asyncio.run(status())
    assert code == 503
    assert json.loads(body)["error"]["code"] == 503


def test_without_a_body_it_is_a_get(url: str) -> None:
    async def models() -> bytes:
        async with Upstream() as upstream, upstream.open(url, "/v1/models", None, {}) as response:
            return await response.read()

    assert json.loads(asyncio.run(models()))["object"] == "list"


def test_a_complete_answer_gives_its_connection_back(url: str, engine: FakeEngine) -> None:
    async def thrice() -> list[int]:
        resting = []
        async with Upstream() as upstream:
            for _ in range(3):
                async with upstream.open(url, CHAT, STREAM, {}) as response:
                    resting.append(upstream.resting)
                    await response.read()
                resting.append(upstream.resting)
        return resting

    assert asyncio.run(thrice()) == [0, 1, 0, 1, 0, 1]
    assert not engine.record.aborts


def test_proxies_of_the_environment_are_not_used(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert asyncio.run(ask(url, tokens=1)).endswith(b"data: [DONE]\n\n")


def test_nobody_listening_may_be_retried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    failed = failure(f"http://127.0.0.1:{port}")
    assert (failed.code, failed.stage, failed.may_retry) == ("upstream_error", "connect", True)


def test_a_hang_up_before_the_answer_may_be_retried(url: str) -> None:
    failed = failure(url, fail="refuse")
    assert (failed.code, failed.stage, failed.may_retry) == ("upstream_error", "headers", True)


@pytest.mark.parametrize("fail", ["die_mid_stream", "malformed"])
def test_an_answer_that_breaks_off_may_not_be_retried(url: str, fail: str) -> None:
    failed = failure(url, fail=fail, after_tokens=2, itl_s=0.02)
    assert (failed.code, failed.stage, failed.may_retry) == ("upstream_error", "body", False)


def test_an_answer_that_breaks_off_before_its_first_byte_may_be_retried() -> None:
    async def hang_up_after_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        writer.close()

    async def failed() -> UpstreamError:
        async with await asyncio.start_server(hang_up_after_headers, "127.0.0.1", 0) as server:
            with pytest.raises(UpstreamError) as failed:
                await ask(local(server.sockets[0]))
            return failed.value

    assert asyncio.run(failed()).may_retry


@pytest.mark.parametrize(
    ("limits", "dials", "stage", "may_retry", "named"),
    [
        (Timeouts(first_byte_s=0.1), {"fail": "hang_before_headers"}, "headers", True, "first_byte_s"),
        (Timeouts(first_byte_s=0.1), {"ttft_s": 5}, "body", True, "first_byte_s"),
        (
            Timeouts(between_frames_s=0.1),
            {"fail": "hang_mid_stream", "after_tokens": 2},
            "body",
            False,
            "between_frames_s",
        ),
        (Timeouts(total_s=0.3), {"itl_s": 0.02, "tokens": 500}, "body", False, "total_s"),
    ],
)
def test_silence_ends_at_the_limit_that_has_its_name(
    url: str, engine: FakeEngine, limits: Timeouts, dials: dict[str, object], stage: str, may_retry: bool, named: str
) -> None:
    began = time.monotonic()
    failed = failure(url, limits, **dials)
    assert 0.1 <= time.monotonic() - began < 4  # and not 5, the engine's own silence
    assert (failed.code, failed.stage, failed.may_retry) == ("upstream_timeout", stage, may_retry)
    assert named in failed.message
    assert asyncio.run(aborts(engine)) < 1


def test_a_connection_that_nobody_accepts_ends_at_its_limit() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address), socket.socket() as waiting:
            waiting.setblocking(False)
            waiting.connect_ex(address)
            failed = failure(local(full), Timeouts(connect_s=0.1))
    assert (failed.code, failed.stage, failed.may_retry) == ("upstream_timeout", "connect", True)


def test_frames_that_keep_coming_do_not_run_into_the_limit_between_them(url: str) -> None:
    limits = Timeouts(first_byte_s=0.5, between_frames_s=0.5)
    assert asyncio.run(ask(url, limits=limits, itl_s=0.05, tokens=20)).count(b'" token"') == 20


def test_time_in_which_nobody_reads_is_not_the_engines_silence(url: str) -> None:
    async def slowly() -> bytes:
        limits = Timeouts(between_frames_s=0.1)
        async with (
            Upstream(limits) as upstream,
            upstream.open(url, CHAT, STREAM, dialled(itl_s=0.02, tokens=5)) as response,
        ):
            first = await anext(response.chunks)
            await asyncio.sleep(0.4)
            return first + await response.read()

    assert asyncio.run(slowly()).count(b'" token"') == 5


def test_silence_counts_from_the_last_chunk_however_often_its_wait_is_cut_short(url: str) -> None:
    async def wait() -> None:
        dials, limits = dialled(fail="hang_mid_stream", after_tokens=1), Timeouts(between_frames_s=0.5)
        async with Upstream(limits) as upstream, upstream.open(url, CHAT, STREAM, dials) as response:
            while True:
                await response.chunks.next_within(0.1)

    with pytest.raises(UpstreamError, match="between_frames_s"):
        asyncio.run(asyncio.wait_for(wait(), 20))


def test_a_wait_that_is_cut_short_loses_nothing_and_disturbs_nobody(url: str) -> None:
    async def impatient() -> tuple[bytes, int]:
        heard, waits = b"", 0
        async with (
            Upstream() as upstream,
            upstream.open(url, CHAT, STREAM, dialled(itl_s=0.05, tokens=20)) as response,
        ):
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    chunk = await response.chunks.next_within(0.02)
                    heard, waits = heard + (chunk or b""), waits + (chunk is None)
            await asyncio.sleep(0.05)  # a cancellation left over would end this
        return heard, waits

    heard, waits = asyncio.run(impatient())
    assert heard.count(b'" token"') == 20
    assert waits >= 10


def test_who_cancels_a_wait_is_heard_though_it_would_be_cut_short(url: str) -> None:
    async def cancelled() -> bool:
        async with (
            Upstream() as upstream,
            upstream.open(url, CHAT, STREAM, dialled(fail="hang_mid_stream", after_tokens=1)) as response,
        ):
            await anext(response.chunks)
            waiting = asyncio.create_task(response.chunks.next_within(0.02))
            await asyncio.sleep(0)
            time.sleep(0.05)  # now both are due in the same turn of the loop
            asyncio.get_running_loop().call_soon(waiting.cancel)
            await asyncio.wait({waiting})
            return waiting.cancelled()

    assert asyncio.run(cancelled())


def test_leaving_before_the_end_makes_the_engine_abort(url: str, engine: FakeEngine) -> None:
    async def leave() -> float:
        async with Upstream() as upstream:
            async with upstream.open(url, CHAT, STREAM, dialled(itl_s=0.05, tokens=1000)) as response:
                await anext(response.chunks)
            return await aborts(engine)

    assert asyncio.run(leave()) < 1


@pytest.mark.parametrize("dials", [{"fail": "hang_before_headers"}, {"ttft_s": 60}, {"itl_s": 0.05, "tokens": 1000}])
def test_cancelling_in_any_state_makes_the_engine_abort(url: str, engine: FakeEngine, dials: dict[str, object]) -> None:
    async def cancel() -> float:
        task = asyncio.create_task(ask(url, **dials))
        while not engine.record.in_flight:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await aborts(engine)

    assert asyncio.run(cancel()) < 1


def test_cancelling_while_the_body_is_sent_drops_the_connection() -> None:
    """An engine that reads nothing: the unsent part must not keep the connection open."""

    async def cancel() -> None:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            task = asyncio.create_task(ask(local(deaf), b"A" * (32 << 20)))
            connection, _ = await asyncio.to_thread(deaf.accept)
            with connection:
                await asyncio.sleep(0.1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                connection.settimeout(1)
                await asyncio.to_thread(read_to_the_end, connection)

    asyncio.run(cancel())


def read_to_the_end(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 20):
            pass
    except ConnectionResetError:
        pass


def test_a_failure_leaves_nothing_open(url: str) -> None:
    """Warnings are errors here: an unclosed connection would end this test at the collection."""
    failure(url, fail="die_mid_stream", after_tokens=1)
    failure(url, fail="refuse")
    gc.collect()
