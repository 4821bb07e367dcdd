"""SIGTERM: announced, then deaf to what is new, then an end for what is left; and restarts that nobody notices."""

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from kimi_serve.launch.up import free_port
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import in_process
from tests.gateway.faults.clients import connect, head, read_answer, read_to_end, read_until, request
from tests.gateway.faults.conftest import CHAT, HELLO, MODEL, SOON, Door, Open, opened
from tests.waiting import eventually

SLOW = {"itl_s": 0.05, "tokens": 100_000}
STREAMS = {
    CHAT: ({"messages": HELLO}, ["", "[DONE]"]),
    "/v1/completions": ({"prompt": "Hello", "max_tokens": 8000}, ["", "[DONE]"]),
    "/v1/messages": ({"messages": HELLO, "max_tokens": 8000}, ["error"]),
    "/v1/responses": ({"input": "Hello", "max_output_tokens": 8000}, ["error"]),
}
FAKE = "kimi_serve.testing.fake_engine:create"


def terminate(door: Door) -> None:
    door.process.send_signal(signal.SIGTERM)


def test_sigterm_is_announced_before_the_door_closes(open_door: Open, engine_url: str, fake: FakeEngine) -> None:
    door = open_door([engine_url], listen__settle_s=600, listen__grace_s=600)
    terminate(door)
    eventually(lambda: door.http.get("/readyz").status_code == 503)
    assert door.http.get("/readyz").json()["status"] == "draining"
    assert door.http.get("/livez").status_code == 200
    answer = door.chat()
    assert answer.status_code == 200
    assert answer.headers["connection"] == "close"
    terminate(door)  # who says it twice means it
    assert door.process.wait(SOON) == 0


def test_what_is_under_way_ends_within_the_grace_time_and_nothing_new_begins(
    open_door: Open, engine_url: str, fake: FakeEngine
) -> None:
    fake.dials = fake.dials.turned({"itl_s": 0.05, "tokens": 30})
    door = open_door([engine_url], listen__grace_s=600, admission__requests=2)
    with ThreadPoolExecutor(4) as threads, connect(door.port) as late:
        late.sendall(head("content-length: 5"))  # was connected in time, and asks too late
        answers = [threads.submit(door.chat, stream=stream) for stream in (True, False)]
        eventually(lambda: fake.record.in_flight == 2)
        queued = [threads.submit(door.chat, stream=stream) for stream in (True, False)]
        eventually(lambda: door.metric("waiting_requests") == 2)
        terminate(door)
        eventually(lambda: not accepts(door))
        for answer in (*answers, *queued):
            assert answer.result().status_code == 200
            assert answer.result().text.count(" token") == 30
            assert "error" not in answer.result().text
        late.sendall(b"{   }")
        assert read_to_end(late)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 503")
    assert door.process.wait(SOON) == 0


def test_what_is_left_after_the_grace_time_is_told_so_in_its_own_dialect(
    open_door: Open, engine_url: str, fake: FakeEngine
) -> None:
    limits = {"listen__grace_s": 1, "listen__stall_s": 600, "stream__keep_alive_s": 0.2}
    door = open_door([engine_url], admission__requests=6, **limits)
    with (
        ThreadPoolExecutor(16) as threads,
        connect(door.port, receive_buffer=4096) as deaf,
        connect(door.port) as trickling,
    ):
        fake.dials = fake.dials.turned({"tokens": 8000, "text": "x" * 2000})
        deaf.sendall(request(stream=True))
        read_until(deaf, b"xxx")
        fake.dials = fake.dials.turned(SLOW)
        streams = {
            path: threads.submit(door.http.post, path, json={"model": MODEL, "stream": True, **body})
            for path, (body, _) in STREAMS.items()
        }
        whole = threads.submit(door.chat)
        eventually(lambda: fake.record.in_flight == 6)
        queued = threads.submit(door.chat)
        queued_stream = threads.submit(door.chat, stream=True)
        eventually(lambda: door.metric("waiting_requests") == 2)
        trickling.sendall(head("content-length: 100000") + b"{" * 50_000)
        eventually(lambda: door.metric("in_flight_bytes") >= 50_000)
        terminate(door)
        for path, (_, ends) in STREAMS.items():
            response = streams[path].result()
            assert response.status_code == 200
            frames = response.text.rstrip("\n").split("\n\n")[-len(ends) :]
            assert [name_of(frame) for frame in frames] == [end if end == "error" else "" for end in ends]
            assert "shutting down" in frames[0]
            assert (ends[-1] == "[DONE]") == frames[-1].endswith("[DONE]")
        assert queued_stream.result().status_code == 503
        assert queued_stream.result().json()["error"]["code"] == "draining"
        assert int(queued_stream.result().headers["retry-after"]) >= 1
        for answer in (whole.result(), queued.result()):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
            assert int(answer.headers["retry-after"]) >= 1
        assert read_answer(trickling).code == "draining"
        assert door.process.wait(SOON) == 0  # who does not read is not waited for
    eventually(lambda: fake.record.in_flight == 0)


def accepts(door: Door) -> bool:
    try:
        connect(door.port).close()
    except ConnectionRefusedError:
        return False
    return True


def name_of(frame: str) -> str:
    return frame.partition("\n")[0].removeprefix("event: ") if frame.startswith("event: ") else ""


@dataclass
class Balancer:
    """What a load balancer does: asks who is ready, sends to these in turn, and tries the next where none listens."""

    urls: list[str]
    ready: dict[str, bool] = field(default_factory=dict)
    answered: int = 0
    failures: list[str] = field(default_factory=list)
    _turn: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        with httpx.Client(timeout=5, trust_env=False) as http:
            while not self._stop.wait(0.1):
                for url in self.urls:
                    try:
                        self.ready[url] = http.get(f"{url}/readyz").status_code == 200
                    except httpx.TransportError:
                        self.ready[url] = False

    def send_on(self, stream: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=4)
        with httpx.Client(timeout=60, trust_env=False, limits=limits) as http:
            while not self._stop.is_set():
                self.send(http, stream)

    def send(self, http: httpx.Client, stream: bool) -> None:
        body = {"model": MODEL, "messages": HELLO, "stream": stream}
        for _ in range(len(self.urls) * 2):
            self._turn += 1
            able = [url for url in self.urls if self.ready.get(url)] or self.urls
            try:
                response = http.post(able[self._turn % len(able)] + CHAT, json=body)
            except httpx.ConnectError:
                continue
            except httpx.TransportError as error:
                self.failures.append(repr(error))
                return
            if response.status_code == 200 and "error" not in response.text and response.text.count(" token") == 10:
                self.answered += 1
            else:
                self.failures.append(f"{response.status_code} {response.text[-300:]}")
            return
        self.failures.append("no gateway takes a connection")

    @contextmanager
    def under_load(self, clients: int) -> Iterator[None]:
        threads = [threading.Thread(target=self.send_on, args=(number % 2 == 0,)) for number in range(clients)]
        threads.append(threading.Thread(target=self.look))
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: self.answered > 10)
            yield
            before = self.answered
            eventually(lambda: self.answered > before + 10)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()


ENGINE = {"max_model_len": 8192, "ttft_s": 0.05, "itl_s": 0.01, "tokens": 10}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_request_fails_while_gateways_and_engines_are_restarted_in_turn(checkpoint: Path, tmp_path: Path) -> None:
    ports, doors = [free_port(), free_port()], []
    with ExitStack() as stack:
        engines = [stack.enter_context(ExitStack()) for _ in range(2)]
        served = [one.enter_context(in_process(FAKE, options=ENGINE, grace_s=30)) for one in engines]
        urls = [one.url for one in served]
        log = tmp_path / "gateway.log"

        def open_at(port: int) -> Door:
            settings = {"listen__settle_s": 1, "listen__grace_s": 60}
            return stack.enter_context(opened(checkpoint, urls, log, port, **settings))

        doors = [open_at(port) for port in ports]
        balancer = Balancer([door.url for door in doors])
        with balancer.under_load(8):
            for number, port in enumerate(ports):
                terminate(doors[number])
                assert doors[number].process.wait(60) == 0
                doors[number] = open_at(port)
                eventually(lambda number=number: balancer.ready[balancer.urls[number]])
            for number in range(2):
                engines[number].close()  # SIGTERM, and what it is answering is answered
                time.sleep(0.5)
                again = in_process(FAKE, options=ENGINE, port=served[number].port, grace_s=30)
                served[number] = engines[number].enter_context(again)
                for door in doors:
                    eventually(lambda door=door: door.metric("ready_replicas") == 2)
        print(f"{balancer.answered} answered, {len(balancer.failures)} failed")
        assert balancer.failures == []
        for door in doors:
            door.assert_idle()
