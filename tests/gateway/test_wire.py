"""What an engine may do with a connection: HTTP's ways to end an answer, and bytes that nobody asked for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from kimi_serve.gateway.upstream import Timeouts, Upstream, UpstreamError

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def engine(answer: Answer) -> AsyncIterator[str]:
    """Reads requests without a body, and answers each."""
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                await reader.readuntil(b"\r\n\r\n")
                await answer(reader, writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            for task in filter(None, serving):
                task.cancel()
            await asyncio.gather(*filter(None, serving))


def saying(*parts: bytes, closes: bool = False) -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        if closes:
            writer.close()

    return answer


def asked(answer: Answer, times: int = 1, limits: Timeouts | None = None) -> list[tuple[int, bytes, int]]:
    """Status, body, and connections that rest afterwards, of each request."""

    async def ask() -> list[tuple[int, bytes, int]]:
        found = []
        async with engine(answer) as url, Upstream(limits) as upstream:
            for _ in range(times):
                async with upstream.open(url, "/v1/models", None, {}) as response:
                    said = await response.read()
                await asyncio.sleep(0.05)
                found.append((response.status, said, upstream.resting))
        return found

    return asyncio.run(asyncio.wait_for(ask(), 30))


def failure(answer: Answer) -> UpstreamError:
    with pytest.raises(UpstreamError) as failed:
        asked(answer)
    return failed.value


def test_a_length_ends_an_answer() -> None:
    assert asked(saying(OK + b"content-length: 5\r\n\r\nab", b"cde"), times=2) == [(200, b"abcde", 1)] * 2


def test_a_last_chunk_ends_an_answer_and_its_trailers_are_read_over() -> None:
    answer = saying(CHUNKED + b"2\r\nab\r\n", b"3\r\ncde\r\n0\r\nx-status: 500\r\n\r\n")
    assert asked(answer, times=2) == [(200, b"abcde", 1)] * 2


def test_the_end_of_the_connection_ends_an_answer_that_states_no_length() -> None:
    assert asked(saying(OK + b"\r\nab", b"cde", closes=True)) == [(200, b"abcde", 0)]


def test_an_answer_may_have_no_body() -> None:
    assert asked(saying(b"HTTP/1.1 204 No Content\r\n\r\n"), times=2) == [(204, b"", 1)] * 2


def test_what_is_said_before_the_answer_is_not_the_answer() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    assert asked(saying(early, OK + b"content-length: 2\r\n\r\nab")) == [(200, b"ab", 1)]


def test_an_engine_that_wants_no_more_requests_gets_none() -> None:
    assert asked(saying(OK + b"connection: close\r\ncontent-length: 2\r\n\r\nab"), times=2) == [(200, b"ab", 0)] * 2


def test_a_connection_that_its_engine_has_closed_is_not_used_again() -> None:
    assert asked(saying(OK + b"content-length: 2\r\n\r\nab", closes=True), times=3) == [(200, b"ab", 0)] * 3


@pytest.mark.parametrize("cut", [0, 1])
def test_what_nobody_asked_for_costs_the_connection_and_no_answer(cut: int) -> None:
    answers = [OK + b"content-length: 2\r\n\r\nab"] * 2
    assert asked(saying(*(answers if cut else [b"".join(answers)])), times=2) == [(200, b"ab", 0)] * 2


@pytest.mark.parametrize(
    "answer",
    [
        saying(OK + b"content-length: 5\r\n\r\nab", closes=True),
        saying(CHUNKED + b"5\r\nab", closes=True),
        saying(CHUNKED + b"2\r\nab\r\n", b"no length\r\n"),
    ],
)
def test_an_answer_that_is_cut_off_is_no_answer(answer: Answer) -> None:
    failed = failure(answer)
    assert (failed.code, failed.stage, failed.may_retry) == ("upstream_error", "body", False)


@pytest.mark.parametrize(
    "answer",
    [
        saying(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"),
        saying(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"),
        saying(OK + b"x-padding: " + b"x" * 70_000 + b"\r\n\r\n"),
    ],
)
def test_what_is_no_answer_of_http_fails_before_the_body(answer: Answer) -> None:
    failed = failure(answer)
    assert (failed.code, failed.stage, failed.may_retry) == ("upstream_error", "headers", True)


def test_what_has_come_before_an_engine_breaks_off_is_still_given() -> None:
    async def heard() -> list[bytes | str]:
        said: list[bytes | str] = []
        async with (
            engine(saying(CHUNKED + b"2\r\nab\r\n", b"3\r\ncde\r\n", closes=True)) as url,
            Upstream() as upstream,
            upstream.open(url, "/", None, {}) as response,
        ):
            await asyncio.sleep(0.2)
            try:
                async for chunk in response.chunks:
                    said.append(chunk)
            except UpstreamError as error:
                said.append(error.code)
        return said

    assert asyncio.run(heard()) == [b"abcde", "upstream_error"]


def test_chunks_are_offered_to_who_wants_them_at_once_and_the_rest_is_waited_for() -> None:
    async def heard() -> tuple[list[bytes], list[bytes | None]]:
        taken: list[bytes] = []

        def take(chunk: bytes) -> bool:
            if chunk.startswith(b"t"):
                taken.append(chunk)
            return chunk.startswith(b"t")

        frames = [b"1\r\n%b\r\n" % piece for piece in (b"a", b"t", b"t", b"b", b"t")]
        waited: list[bytes | None] = []
        async with (
            engine(saying(CHUNKED, *frames, b"0\r\n\r\n")) as url,
            Upstream() as upstream,
            upstream.open(url, "/", None, {}) as response,
        ):
            response.chunks.divert(take)
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    waited.append(await response.chunks.next_within(10))
        return taken, waited

    assert asyncio.run(heard()) == ([b"t"] * 3, [b"a", b"b"])


def test_who_waits_is_told_of_silence_though_chunks_went_by() -> None:
    async def waits() -> list[bytes | None]:
        frames = [b"1\r\nt\r\n"] * 20
        waited: list[bytes | None] = []
        async with (
            engine(saying(CHUNKED + b"1\r\na\r\n", *frames, b"")) as url,
            Upstream() as upstream,
            upstream.open(url, "/", None, {}) as response,
        ):
            response.chunks.divert(lambda chunk: chunk == b"t")
            while None not in waited:
                waited.append(await response.chunks.next_within(0.3))
        return waited

    assert asyncio.run(asyncio.wait_for(waits(), 30)) == [b"a", None]


def test_an_engine_has_to_wait_for_who_does_not_read() -> None:
    sent = 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + b"content-length: %d\r\n\r\n" % (64 << 20))
        for _ in range(1024):
            writer.write(b"x" * (64 << 10))
            await writer.drain()
            sent += 64 << 10

    async def dawdle() -> tuple[int, int]:
        async with engine(pour) as url, Upstream() as upstream, upstream.open(url, "/", None, {}) as response:
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.3)
            return before, len(await response.read())

    stood, read = asyncio.run(dawdle())
    assert stood < 32 << 20
    assert read == 64 << 20
