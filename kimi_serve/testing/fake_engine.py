"""An engine that speaks vLLM's HTTP and computes nothing. Knows when each byte is sent; what it says is in answers.py.

    python -m kimi_serve.testing.fake_engine --port 8001 --ttft-s 0.2 --itl-s 0.02

A request changes its own dials with the header `x-fake-engine: {"tokens": 3}`, PUT /dials those of all that follow.
GET /record says what came in and who left (`?bodies` adds the last bodies), DELETE /record forgets it.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

from starlette.types import Receive, Scope, Send

from kimi_serve.testing import answers, asked, serving
from kimi_serve.testing.answers import ROUTES, Kind, Spoken
from kimi_serve.testing.asked import Asked
from kimi_serve.testing.dials import Dials, from_command_line, turned_by
from kimi_serve.testing.image_memory import ImageMemory
from kimi_serve.testing.record import Received, Record

VERSION: Final = "0.32.0"
_NOT_HTTP: Final = b"no chunk size\r\n"
_JSON: Final = [(b"content-type", b"application/json")]
_SSE: Final = [(b"content-type", b"text/event-stream; charset=utf-8")]


class FakeEngine:
    """An ASGI application; `dials` and `record` may be used directly where it runs in the same process."""

    def __init__(self, dials: Dials | None = None) -> None:
        self.dials = Dials() if dials is None else dials
        self.record = Record()
        self.images = ImageMemory()
        self.instance = uuid.uuid4().hex
        self._seats: dict[int, asyncio.Semaphore] = {}  # by how many there are
        self.once: deque[Mapping[str, object]] = deque()  # changes of the dials, each for one request to come

    def restart(self) -> None:
        """As one that was started anew at the same place."""
        self.images.forget()
        self.instance = uuid.uuid4().hex

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "serve the fake engine without lifespan and websockets"
        kind = ROUTES.get(scope["path"]) if scope["method"] == "POST" else None
        if kind is None:
            await self._plain(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            return
        request = self.record.arrived(Received(scope["path"], tuple(scope["headers"]), body))
        try:
            dials = self._dials_of(scope)
            wanted = asked.read(body)
            refusal = self.images.receive(body, dials.image_memory) if dials.image_memory else None
        except ValueError as malformed:
            refusal = str(malformed)
        if refusal is not None:
            await _send(send, 400, answers.refusal(kind, refusal))
            return
        answer = answers.to(kind, dials, wanted)
        await _Exchange(
            self.record, request, scope, receive, send, kind, dials, wanted, answer, self._seat(dials)
        ).run()

    def _seat(self, dials: Dials) -> AbstractAsyncContextManager[None]:
        return self._seats.setdefault(dials.slots, asyncio.Semaphore(dials.slots)) if dials.slots else nullcontext()

    def _dials_of(self, scope: Scope) -> Dials:
        if self.once:
            return self.dials.turned(self.once.popleft())
        changes = next((value for key, value in scope["headers"] if key == b"x-fake-engine"), None)
        return self.dials if changes is None else turned_by(self.dials, changes)

    async def _plain(self, scope: Scope, receive: Receive, send: Send) -> None:
        match (scope["method"], scope["path"]):
            case ("GET", "/health"):
                await _send(send, 200, b"")
            case ("GET", "/version"):
                await _send(send, 200, b'{"version":"%s"}' % VERSION.encode())
            case ("GET", "/v1/models"):
                await _send(send, 200, answers.models(self.dials))
            case ("GET", "/metrics"):
                await _send(
                    send, 200, answers.metrics(self.dials, self.record.in_flight), [(b"content-type", b"text/plain")]
                )
            case ("GET", "/plugins/kimi_serve/info"):
                await _send(send, 200, answers.info(self.dials, self.instance))
            case ("GET", "/record"):
                await _send(send, 200, answers.dumps(self.record.as_dict(bodies=scope["query_string"] == b"bodies")))
            case ("DELETE", "/record"):
                self.record.clear()
                await _send(send, 200, b"{}")
            case ("PUT", "/dials"):
                await self._turn(receive, send)
            case _:
                await _send(send, 404, b'{"detail":"Not Found"}')

    async def _turn(self, receive: Receive, send: Send) -> None:
        try:
            self.dials = turned_by(self.dials, await _read(receive) or b"")
        except ValueError as refused:
            await _send(send, 400, answers.error(400, str(refused)))
        else:
            await _send(send, 200, self.dials.as_json())


class _Exchange:
    """One generation: waits as the dials say, sends, and ends at once when its client leaves, as vLLM does."""

    def __init__(
        self,
        record: Record,
        request: int,
        scope: Scope,
        receive: Receive,
        send: Send,
        kind: Kind,
        dials: Dials,
        asked: Asked,
        answer: Spoken,
        seat: AbstractAsyncContextManager[None],
    ) -> None:
        self._record, self._request, self._scope, self._send = record, request, scope, send
        self._kind, self._dials, self._asked, self._answer = kind, dials, asked, answer
        self._seat = seat
        self._gone = asyncio.ensure_future(receive())  # the body is read: what comes now is http.disconnect
        self._frames = 0
        self._has_ended = False

    async def run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._gone.add_done_callback(lambda _: None if self._has_ended else task.cancel())
        self._record.in_flight += 1
        try:
            await self._play()
        except asyncio.CancelledError:
            if not self._gone.done():
                raise  # the server stops
            self._record.left(self._request, self._frames)
        finally:
            self._has_ended = True
            self._record.in_flight -= 1
            self._gone.cancel()

    async def _play(self) -> None:
        dials = self._dials
        match dials.fail:
            case "refuse":
                await self._hang_up()
                return
            case "fault" if not self._asked.stream:
                await _send(self._send, 500, answers.refusal(self._kind, answers.FAULT, 500))
                return
            case "500" | "503":
                await _send(self._send, int(dials.fail), answers.error(int(dials.fail), "the dial says so"))
                return
            case "hang_before_headers":
                await asyncio.Event().wait()
        if self._asked.stream:
            await self._stream()
        else:
            async with self._seat:
                await asyncio.sleep(dials.ttft_s + dials.itl_s * max(0, self._answer.tokens - 1))
            await _send(self._send, 200, self._answer.whole())

    async def _stream(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": _SSE})
        async with self._seat:
            await self._frames_in_time()

    async def _frames_in_time(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._dials.ttft_s
        answer, step = self._answer, self._dials.itl_s
        if self._dials.ttft_s:
            await asyncio.sleep(self._dials.ttft_s)
        breaks_after = self._dials.after_tokens if self._dials.fail != "none" else -1
        await self._body(answer.opening())
        for frame in answer.contents():
            if self._frames == breaks_after:
                break
            if self._frames and step:
                due += step
                await asyncio.sleep(due - loop.time())
            await self._body(frame)
            self._frames += 1
        if breaks_after >= 0:
            await self._break()
            return
        await self._send({"type": "http.response.body", "body": answer.ending(), "more_body": False})

    async def _body(self, frame: bytes) -> None:
        if serving.transport_of(self._scope).is_closing():
            await (
                asyncio.Event().wait()
            )  # uvicorn would swallow the rest without a pause in which run() could hear of it
        if frame:
            await self._send({"type": "http.response.body", "body": frame, "more_body": True})

    async def _break(self) -> None:
        match self._dials.fail:
            case "hang_mid_stream":
                await asyncio.Event().wait()
            case "die_mid_stream":
                await self._hang_up()
            case "malformed":
                self._has_ended = True
                serving.transport_of(self._scope).write(_NOT_HTTP)
                await asyncio.wait({self._gone})
            case "fault":
                await self._fail()

    async def _fail(self) -> None:
        if (said := answers.fault(self._kind)) is None:
            await self._hang_up()
        else:
            await self._send({"type": "http.response.body", "body": said, "more_body": False})

    async def _hang_up(self) -> None:
        self._has_ended = True  # it is the engine that leaves, and no abort to record
        serving.transport_of(self._scope).abort()
        await asyncio.wait({self._gone})


async def _read(receive: Receive) -> bytes | None:
    """None where the client left before its body was complete."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message["body"])
        if not message["more_body"]:
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] = _JSON) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def create(**dials: object) -> FakeEngine:
    """For serving.in_process("kimi_serve.testing.fake_engine:create", options={...})."""
    return FakeEngine(Dials().turned(dials))


if __name__ == "__main__":
    port, dials = from_command_line(sys.argv[1:])
    serving.run(FakeEngine(dials), port=port)
