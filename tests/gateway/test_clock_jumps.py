"""A running gateway whose wall clock jumps: what waits goes on waiting, and what was counted stays counted."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.gateway.conftest import Start
from tests.gateway.test_gateway import error_of
from tests.gateway.test_key_stores import metric
from tests.gateway.test_tenants import made
from tests.waiting import eventually

DAY = 86_400.0


@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_a_jump_of_the_wall_clock_neither_ends_nor_prolongs_what_waits(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    file = tmp_path / "keys.json"
    header = made(file, "acme", "--requests-per-minute", "2")
    front = start(keys={"file": str(file)}, admission={"requests": 1}, dials={"ttft_s": 3.0})
    real = time.time
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(front.chat, "x", headers=header) for _ in range(2)]
        eventually(lambda: sum(front.gateway.admission.snapshot().waiting.values()) == 1, 10.0)
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        assert 0 <= metric(front, "kimi_serve_oldest_waiting_seconds") < 60
        error_of(front.chat("x", headers=header), 429, "rate_limited")
        clients = [one.result(timeout=60) for one in asked]
    assert [client.status_code for client in clients] == [200, 200]
    assert 0 <= metric(front, "kimi_serve_queue_duration_seconds_sum") < 60
    front.assert_idle()
