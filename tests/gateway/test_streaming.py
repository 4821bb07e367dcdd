"""The relay of streams: by itself, and over real sockets to a client that reads, dawdles or leaves."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from fastapi import FastAPI, Request
from starlette.types import Receive, Scope, Send

from kimi_serve.gateway.streaming import ClientGoneError, Observation, SseResponse, relay, while_connected
from kimi_serve.gateway.upstream import Timeouts, Upstream
from kimi_serve.protocol.errors import ApiError
from kimi_serve.protocol.sse import DONE, KEEP_ALIVE, Splitter, data_of, event
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import Served, in_thread
from tests.waiting import eventually

CHAT = "/v1/chat/completions"
ROLE = event('{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}')
TOKEN = event('{"choices":[{"index":0,"delta":{"content":"x"}}]}')
USAGE = event('{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}')


@dataclass
class Source:
    """Chunks with pauses in seconds between them; counts what is pulled."""

    items: Sequence[bytes | float | Exception]
    pulled: int = 0
    at: int = 0
    slept: float = 0.0

    async def next_within(self, seconds: float) -> bytes | None:
        while self.at < len(self.items):
            item = self.items[self.at]
            if isinstance(item, float):
                part = min(seconds, item - self.slept)
                await asyncio.sleep(part)
                self.slept, seconds = self.slept + part, seconds - part
                if self.slept < item:
                    return None
            self.at, self.slept = self.at + 1, 0.0
            if isinstance(item, Exception):
                raise item
            if isinstance(item, bytes):
                self.pulled += 1
                return item
        raise StopAsyncIteration


def relayed(*items: bytes | float | Exception, keep_alive_s: float = 5.0) -> tuple[list[bytes], Observation]:
    async def collect() -> list[bytes]:
        source = Source(items)
        return [
            part async for part in relay(source, keep_alive_s=keep_alive_s, clock=time.monotonic, observe=seen.append)
        ]

    seen: list[Observation] = []
    parts = asyncio.run(collect())
    (observation,) = seen
    return parts, observation


def error_in(parts: Sequence[bytes]) -> dict[str, object]:
    """The error of a stream's end; what stands before it must be whole frames."""
    frames = Splitter().feed(b"".join(parts))
    assert b"".join(frames) == b"".join(parts)
    assert frames[-1] == DONE
    error: dict[str, object] = json.loads(data_of(frames[-2]) or b"")["error"]
    return error


def test_chunks_stay_what_they_are() -> None:
    chunks = [ROLE, TOKEN + TOKEN, b": hi\r\n\r\n", USAGE + DONE]
    assert relayed(*chunks)[0] == chunks


def test_a_frame_in_pieces_is_passed_on_when_it_is_whole() -> None:
    parts, _ = relayed(ROLE + TOKEN[:9], TOKEN[9:], DONE[:3], DONE[3:])
    assert parts == [ROLE, TOKEN, DONE]


def test_what_follows_done_is_dropped() -> None:
    assert relayed(TOKEN, DONE + TOKEN, TOKEN)[0] == [TOKEN, DONE]


def test_usage_and_content_are_observed() -> None:
    _, seen = relayed(ROLE, 0.05, TOKEN, 0.1, TOKEN, TOKEN, USAGE, DONE)
    assert (seen.outcome, seen.error, seen.content_frames) == ("complete", None, 3)
    assert seen.usage == {"prompt_tokens": 3, "completion_tokens": 2}
    assert seen.ttft_s is not None
    assert 0.05 <= seen.ttft_s < 2
    assert 0.1 <= seen.longest_gap_s < 2
    assert sum(seen.gaps) == 2
    assert seen.mean_gap_s is not None
    assert 0.05 <= seen.mean_gap_s <= seen.longest_gap_s
    assert seen.sent_bytes == len(ROLE + 3 * TOKEN + USAGE + DONE)


def test_the_last_usage_counts() -> None:
    later = USAGE.replace(b"2", b"9")
    assert relayed(USAGE, later, DONE)[1].usage == {"prompt_tokens": 3, "completion_tokens": 9}


def test_usage_that_is_no_json_is_passed_on_and_not_believed() -> None:
    broken = event('{"usage":{')
    parts, seen = relayed(broken, DONE)
    assert parts == [broken, DONE]
    assert (seen.usage, seen.outcome) == (None, "complete")


def test_a_client_who_writes_about_usage_makes_none() -> None:
    said = event(json.dumps({"choices": [{"delta": {"content": '"usage":{"prompt_tokens":1}'}}]}))
    assert relayed(said, DONE)[1].usage is None


def test_an_error_event_of_the_engine_is_passed_on_and_noted() -> None:
    failed = event('{"error":{"message":"out of memory","code":500}}')
    parts, seen = relayed(TOKEN, failed, DONE)
    assert parts == [TOKEN, failed, DONE]
    assert (seen.outcome, seen.error) == ("failed", "engine_error")


@pytest.mark.parametrize("items", [(), (TOKEN,), (TOKEN, TOKEN[:7])])
def test_a_stream_that_ends_without_done_ends_with_an_error(items: tuple[bytes, ...]) -> None:
    parts, seen = relayed(*items)
    assert error_in(parts)["code"] == "upstream_error"
    assert parts[:-1] == [TOKEN][: len(items)]
    assert (seen.outcome, seen.error) == ("failed", "upstream_error")


def test_a_failure_of_the_engine_is_the_error_of_the_stream() -> None:
    parts, seen = relayed(TOKEN, ApiError("upstream_timeout", "the engine was silent"))
    assert error_in(parts) == {
        "message": "the engine was silent",
        "type": "server_error",
        "param": None,
        "code": "upstream_timeout",
    }
    assert (seen.outcome, seen.error) == ("failed", "upstream_timeout")


def test_a_frame_without_end_is_an_error_and_no_memory() -> None:
    parts, _ = relayed(TOKEN, *[b"x" * (1 << 20)] * 5)
    assert error_in(parts)["code"] == "upstream_error"


def test_keep_alives_fill_the_wait_for_the_first_frame_and_long_pauses() -> None:
    parts, seen = relayed(0.5, TOKEN, TOKEN, 0.3, TOKEN, DONE, keep_alive_s=0.1)
    assert [part for part in parts if part != KEEP_ALIVE] == [TOKEN, TOKEN, TOKEN, DONE]
    assert parts[:2] == [KEEP_ALIVE, KEEP_ALIVE]
    assert KEEP_ALIVE in parts[parts.index(TOKEN) :]
    assert seen.keep_alives == parts.count(KEEP_ALIVE)


def test_a_stream_that_keeps_coming_gets_no_keep_alive() -> None:
    parts, _ = relayed(*[TOKEN, 0.05] * 10, DONE, keep_alive_s=0.3)
    assert KEEP_ALIVE not in parts


def test_nothing_is_read_ahead() -> None:
    async def dawdle() -> None:
        source = Source([TOKEN] * 100)
        async with contextlib.aclosing(relay(source, keep_alive_s=1, clock=time.monotonic, observe=id)) as parts:
            for taken in range(1, 20):
                await anext(parts)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert source.pulled == taken

    asyncio.run(dawdle())


@pytest.mark.parametrize("items", [[TOKEN] * 3, [TOKEN, 60.0]])
def test_closing_ends_it_at_once(items: list[bytes | float]) -> None:
    async def leave() -> Observation:
        seen: list[Observation] = []
        parts = relay(Source(items), keep_alive_s=1, clock=time.monotonic, observe=seen.append)
        await anext(parts)
        await parts.aclose()
        return seen[0]

    assert asyncio.run(leave()).outcome == "left"


def test_work_is_cancelled_when_the_client_leaves() -> None:
    async def leave() -> None:
        async def receive() -> dict[str, str]:
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        with pytest.raises(ClientGoneError):
            await while_connected(receive, asyncio.sleep(60))
        await asyncio.sleep(0.02)  # a cancellation left over would end this

    asyncio.run(leave())


def test_work_that_is_done_in_time_gives_its_result_and_leaves_no_watcher() -> None:
    async def work() -> int:
        async def receive() -> dict[str, str]:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        result = await while_connected(receive, asyncio.sleep(0.01, 7))
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        return result

    assert asyncio.run(work()) == 7


@dataclass
class Gateway:
    """As little of a gateway as a stream needs: every request goes to one engine, and every answer is a stream."""

    engine: str
    timeouts: Timeouts = field(default_factory=Timeouts)
    keep_alive_s: float = 5.0
    seen: list[Observation] = field(default_factory=list)
    pulled: int = 0
    upstream: Upstream | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        body = (await receive())["body"]
        dials = next((value.decode() for key, value in scope["headers"] if key == b"x-fake-engine"), "{}")
        await SseResponse(self.parts(body, {"x-fake-engine": dials}))(scope, receive, send)

    async def live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with Upstream() as self.upstream:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def parts(self, body: bytes, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
        source = Counted(self, body, headers)
        passed = relay(source, keep_alive_s=self.keep_alive_s, clock=time.monotonic, observe=self.seen.append)
        async with contextlib.aclosing(source), contextlib.aclosing(passed):
            async for part in passed:
                yield part


class Counted:
    """The engine's answer, which is waited for like its chunks; notes with the gateway how many bytes were read."""

    def __init__(self, gateway: Gateway, body: bytes, headers: dict[str, str]) -> None:
        assert gateway.upstream is not None
        self.gateway, self.held = gateway, contextlib.AsyncExitStack()
        answer = gateway.upstream.open(gateway.engine, CHAT, body, headers, timeouts=gateway.timeouts)
        self.opening = asyncio.ensure_future(self.held.enter_async_context(answer))

    async def next_within(self, seconds: float) -> bytes | None:
        done, _ = await asyncio.wait({self.opening}, timeout=seconds)
        if not done:
            return None
        chunk = await self.opening.result().chunks.next_within(seconds)
        self.gateway.pulled += len(chunk or b"")
        return chunk

    async def aclose(self) -> None:
        self.opening.cancel()
        await asyncio.wait({self.opening})
        await self.held.aclose()


@dataclass
class Stack:
    engine: FakeEngine
    gateway: Gateway
    served: Served

    def connect(self, **dials: object) -> socket.socket:
        client = socket.socket()
        client.settimeout(5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.connect(("127.0.0.1", self.served.port))
        body = b'{"stream":true,"stream_options":{"include_usage":true}}'
        head = f"POST / HTTP/1.1\r\nx-fake-engine: {json.dumps(dials)}\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        return client

    def stream(self, **dials: object) -> bytes:
        with self.connect(**dials) as client:
            return payload(read_response(client))

    def outcome(self) -> Observation:
        eventually(lambda: self.gateway.seen)
        return self.gateway.seen[0]


@pytest.fixture(scope="module")
def running() -> Iterator[Stack]:
    engine = FakeEngine()
    with in_thread(engine) as behind:
        gateway = Gateway(behind.url)
        with in_thread(gateway) as served:
            yield Stack(engine, gateway, served)


@pytest.fixture
def stack(running: Stack) -> Stack:
    running.engine.record.clear()
    running.gateway.timeouts, running.gateway.keep_alive_s, running.gateway.pulled = Timeouts(), 5.0, 0
    running.gateway.seen.clear()
    return running


def read_response(client: socket.socket) -> bytes:
    heard = bytearray()
    while not heard.endswith(b"0\r\n\r\n"):
        data = client.recv(1 << 16)
        assert data, f"the connection was closed after {bytes(heard[-200:])!r}"
        heard += data
    return bytes(heard)


def payload(response: bytes) -> bytes:
    """The body without its chunk sizes."""
    body, rest = bytearray(), response.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return bytes(body)


def direct(engine_url: str, **dials: object) -> bytes:
    async def ask() -> bytes:
        headers = {"x-fake-engine": json.dumps(dials)}
        body = b'{"stream":true,"stream_options":{"include_usage":true}}'
        async with Upstream() as upstream, upstream.open(engine_url, CHAT, body, headers) as response:
            return await response.read()

    return asyncio.run(ask())


def anonymous(stream: bytes) -> bytes:
    """Without what differs from one answer of the engine to its next: the id and the second."""
    first = json.loads(data_of(Splitter().feed(stream)[0]) or b"")
    stream = stream.replace(first["id"].encode(), b"ID")
    return stream.replace(b'"created":%d' % first["created"], b'"created":0')


def test_a_stream_of_five_thousand_frames_arrives_byte_for_byte(stack: Stack) -> None:
    through = stack.stream(tokens=5000)
    assert through.count(b"data: ") == 5003
    assert anonymous(through) == anonymous(direct(stack.gateway.engine, tokens=5000))
    seen = stack.outcome()
    assert (seen.outcome, seen.content_frames) == ("complete", 5000)
    assert seen.usage == {"prompt_tokens": 10, "total_tokens": 5010, "completion_tokens": 5000}


def test_a_response_says_that_it_is_a_stream_and_not_to_be_collected(stack: Stack) -> None:
    with stack.connect(tokens=1) as client:
        head = read_response(client).partition(b"\r\n\r\n")[0].lower()
    assert b"content-type: text/event-stream" in head
    assert b"x-accel-buffering: no" in head
    assert b"content-length" not in head


def test_the_connections_of_a_finished_stream_are_used_again(stack: Stack) -> None:
    assert stack.gateway.upstream is not None
    for _ in range(3):
        stack.stream(tokens=2)
    eventually(lambda: len(stack.gateway.seen) == 3)
    assert not stack.engine.record.aborts
    assert stack.gateway.upstream.resting == 1


@pytest.mark.parametrize(
    ("dials", "frames"),
    [
        ({"fail": "hang_before_headers"}, 0),
        ({"ttft_s": 60}, 0),
        ({"itl_s": 0.02, "tokens": 3000}, 1),
        ({"fail": "hang_mid_stream", "after_tokens": 3}, 3),
    ],
)
def test_a_client_that_leaves_is_an_abort_within_a_second(stack: Stack, dials: dict[str, object], frames: int) -> None:
    with stack.connect(**dials) as client:
        eventually(lambda: stack.engine.record.in_flight == 1)
        heard = bytearray()
        while heard.count(b'"content":" token"') < frames:
            heard += client.recv(1 << 16)
    left = time.monotonic()
    eventually(lambda: stack.engine.record.aborts)
    assert stack.engine.record.aborts[0].at - left < 1
    assert stack.outcome().outcome == "left"
    assert stack.engine.record.in_flight == 0


def test_an_engine_that_dies_ends_the_stream_with_an_error_event(stack: Stack) -> None:
    stream = stack.stream(fail="die_mid_stream", after_tokens=3, itl_s=0.02)
    assert stream.count(b'"content":" token"') == 3
    assert error_in([stream])["code"] == "upstream_error"
    assert stack.outcome().outcome == "failed"


@pytest.mark.parametrize("fail", ["refuse", "malformed"])
def test_an_engine_that_fails_otherwise_ends_the_stream_with_an_error_event(stack: Stack, fail: str) -> None:
    assert error_in([stack.stream(fail=fail)])["code"] == "upstream_error"


@pytest.mark.parametrize("fail", ["hang_before_headers", "hang_mid_stream"])
def test_an_engine_that_hangs_is_a_timeout_and_let_go(stack: Stack, fail: str) -> None:
    stack.gateway.timeouts = Timeouts(first_byte_s=0.2, between_frames_s=0.2)
    assert error_in([stack.stream(fail=fail, after_tokens=2)])["code"] == "upstream_timeout"
    eventually(lambda: stack.engine.record.aborts)


def test_a_client_hears_keep_alives_while_the_engine_works(stack: Stack) -> None:
    stack.gateway.keep_alive_s = 0.05
    stream = stack.stream(ttft_s=0.2, tokens=2)
    assert stream.startswith(KEEP_ALIVE * 2)
    assert stream.endswith(DONE)


def test_what_a_slow_reader_does_not_take_is_not_pulled(stack: Stack) -> None:
    total = 64 << 20
    with stack.connect(text="x" * (1 << 16), tokens=total >> 16):
        eventually(lambda: stands_still(stack.gateway))
        assert stack.gateway.pulled < total / 4
    eventually(lambda: stack.engine.record.aborts)


def stands_still(gateway: Gateway) -> bool:
    pulled = gateway.pulled
    time.sleep(0.3)
    return 0 < pulled == gateway.pulled


def test_a_route_of_fastapi_may_return_it_and_its_client_may_leave() -> None:
    seen: list[Observation] = []
    app = FastAPI()

    @app.post("/")
    async def route(request: Request) -> SseResponse:
        tokens = Source([TOKEN] * int(await request.body()) + [60.0])
        return SseResponse(relay(tokens, keep_alive_s=5, clock=time.monotonic, observe=seen.append))

    with in_thread(app) as served, socket.create_connection(("127.0.0.1", served.port), timeout=5) as client:
        client.sendall(b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n2")
        heard = bytearray()
        while heard.count(TOKEN) < 2:
            heard += client.recv(4096)
        client.close()
        eventually(lambda: seen)
    assert seen[0].outcome == "left"


def test_a_fault_of_the_gateway_is_an_error_event_and_a_log(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield TOKEN
        raise KeyError("a mistake")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await SseResponse(broken())(scope, receive, send)

    with in_thread(app) as served, socket.create_connection(("127.0.0.1", served.port), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stream = payload(read_response(client))
    assert error_in([stream])["code"] == "internal_error"
    assert "a mistake" not in stream.decode()
    assert "a stream broke off" in caplog.text


def test_dials_of_the_engine_stay_as_they_were(stack: Stack) -> None:
    """These tests share an engine: a request's own dials must not outlive it."""
    stack.stream(tokens=3)
    assert stack.engine.dials == Dials()
