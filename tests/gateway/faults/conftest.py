"""A gateway as a process of its own, in front of a fake engine. Knows how both are asked what they hold; no fault."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from kimi_serve.launch.up import free_port
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import in_thread
from tests.gateway.faults.wires import Wire, wire_to
from tests.waiting import SOON, eventually

MODEL = "kimi-vl"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
STARTS_IN = 180.0  # seconds; it takes two on an idle machine
HELD = ("outstanding_requests", "outstanding_cost_tokens", "in_flight_bytes", "waiting_requests")
_SAMPLE = re.compile(r"^kimi_serve_([a-z_]+)(\{[^}]*\})? ([0-9.e+-]+)$", re.MULTILINE)


@dataclass
class Door:
    """`kimi-serve gateway`, from outside."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False, limits=limits)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def chat(self, **options: object) -> httpx.Response:
        return self.http.post(CHAT, json={"model": MODEL, "messages": HELLO, **options})

    def is_ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        """The sum over its labels."""
        text = self.http.get("/metrics").text
        return sum(float(value) for found, _, value in _SAMPLE.findall(text) if found == name)

    def held(self) -> dict[str, float]:
        """What is at engines, in line and in memory."""
        text = self.http.get("/metrics").text
        held = dict.fromkeys((*HELD, "replica_outstanding_requests", "replica_outstanding_tokens"), 0.0)
        for name, _, value in _SAMPLE.findall(text):
            if name in held:
                held[name] += float(value)
        return held

    def assert_idle(self) -> None:
        """Everything that a request can hold has been given back."""
        deadline = time.monotonic() + SOON
        while any(self.held().values()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(self.held().values()), self.held()

    def resident_bytes(self) -> int:
        return self._memory("VmRSS:")

    def most_resident_bytes(self) -> int:
        """Since its start."""
        return self._memory("VmHWM:")

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(name)[2].split()[0]) << 10


@contextmanager
def opened(
    checkpoint: Path, engines: list[str], log: Path, port: int | None = None, **settings: object
) -> Iterator[Door]:
    """settings: section__name=value. Ready when the block begins; killed, if it has not ended by then, at its end."""
    port = port or free_port()
    settings = {"replicas__check_s": 0.2, "listen__settle_s": 0, **settings}
    environ = {f"KIMI_SERVE_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "kimi_serve.cli", "gateway", "--checkpoint", str(checkpoint), "--port", str(port)]
    for engine in engines:
        command += ["--engine", engine]
    with log.open("ab") as sink:
        process = subprocess.Popen(command, env={**os.environ, **environ}, stdin=subprocess.DEVNULL, stderr=sink)
    door = Door(port, process, log)
    try:
        with door.http:
            deadline = time.monotonic() + STARTS_IN
            while not door.is_ready():
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.05)
            yield door
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


Open = Callable[..., Door]


@pytest.fixture
def open_door(checkpoint: Path, tmp_path: Path) -> Iterator[Open]:
    """open_door(urls, **settings) -> Door, which ends with the test."""
    with ExitStack() as stack:
        yield lambda engines, **settings: stack.enter_context(
            opened(checkpoint, engines, tmp_path / "gateway.log", **settings)
        )


@pytest.fixture(scope="package")
def engine() -> Iterator[tuple[FakeEngine, str]]:
    double = FakeEngine()
    with in_thread(double) as served:
        yield double, served.url


@pytest.fixture
def fake(engine: tuple[FakeEngine, str]) -> FakeEngine:
    """The engine of all tests of this folder, as good as new."""
    double = engine[0]
    double.dials = Dials(max_model_len=8192)
    double.record.clear()
    return double


@pytest.fixture
def engine_url(engine: tuple[FakeEngine, str]) -> str:
    return engine[1]


AT_ENGINE = 8
LIMITS: dict[str, object] = {"listen__header_bytes": 16_384, "body__max_bytes": 32 << 20}
HASTY: dict[str, object] = {
    **LIMITS,
    "listen__header_s": 1,
    "listen__stall_s": 1,
    "body__timeout_s": 1.5,
    "stream__keep_alive_s": 0.5,
    "upstream__first_byte_s": 2,
    "upstream__between_frames_s": 1,
    "upstream__unreachable_s": 3,
}


@pytest.fixture(scope="package")
def silent_origin() -> Iterator[int]:
    """The port of a server of pictures that takes requests and sends nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:  # the kernel takes them, and nobody else
        yield listener.getsockname()[1]


@pytest.fixture(scope="package")
def patient_door(
    engine: tuple[FakeEngine, str], silent_origin: int, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Door]:
    log = tmp_path_factory.mktemp("patient") / "gateway.log"
    media = {"media__allow_private": '["127.0.0.0/8"]', "media__ports": f"[{silent_origin}]", "media__timeout_s": 600}
    with opened(checkpoint, [engine[1]], log, admission__requests=AT_ENGINE, **LIMITS, **media) as door:
        yield door


@pytest.fixture(scope="package")
def wire(engine: tuple[FakeEngine, str]) -> Iterator[Wire]:
    """Between the hasty gateway and its engine."""
    with wire_to(int(engine[1].rpartition(":")[2])) as wire:
        yield wire


@pytest.fixture(scope="package")
def hasty_door(wire: Wire, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    log = tmp_path_factory.mktemp("hasty") / "gateway.log"
    with opened(checkpoint, [f"http://127.0.0.1:{wire.port}"], log, **HASTY) as door:
        yield door


@pytest.fixture
def door(patient_door: Door, fake: FakeEngine) -> Iterator[Door]:
    """One gateway for all tests in which no limit of time is met: a busy machine is slow to send and to answer."""
    yield patient_door
    assert_sound(patient_door, fake)


@pytest.fixture
def hasty(hasty_door: Door, fake: FakeEngine) -> Iterator[Door]:
    """One gateway with short limits of time for all tests that meet one."""
    yield hasty_door
    assert_sound(hasty_door, fake)


def assert_sound(door: Door, fake: FakeEngine) -> None:
    """Holds nothing when a test is over, and still answers."""
    fake.dials = Dials(max_model_len=8192)
    door.assert_idle()
    eventually(lambda: door.chat(max_tokens=2).status_code == 200)  # it may have ejected its engine
