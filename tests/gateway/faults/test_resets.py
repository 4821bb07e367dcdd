"""One piece in a hundred between gateway and engine ends in a reset: no answer is lost, doubled or cut unseen."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from kimi_serve.testing.fake_engine import FakeEngine
from tests.gateway.faults.conftest import Open
from tests.gateway.faults.wires import wire_to

REQUESTS = int(os.environ.get("KIMI_SERVE_RESET_REQUESTS", "200"))
SHARE = 0.01
TOKENS = 20


def whole_answer(response: httpx.Response) -> str | None:
    """The number of the answer that came; None where a clear error came instead. All else is a failure of the test."""
    if response.status_code != 200:
        assert response.status_code in (502, 503), response.text
        assert response.json()["error"]["code"] in ("upstream_error", "no_replica")
        return None
    if response.headers["content-type"] == "application/json":
        answer = response.json()
        assert answer["choices"][0]["message"]["content"] == " token" * TOKENS
        return str(answer["id"])
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    events = [json.loads(one) for one in data[:-1]]
    if "error" in events[-1]:
        assert events[-1]["error"]["code"] == "upstream_error"
        return None
    assert sum(event["choices"][0]["delta"].get("content") == " token" for event in events) >= TOKENS - 1
    (number,) = {event["id"] for event in events}
    return str(number)


@pytest.mark.parametrize("engines", [1, 2])
def test_resets_lose_and_double_no_answer(open_door: Open, fake: FakeEngine, engine_url: str, engines: int) -> None:
    """Over two wires the one engine is two to the gateway."""
    fake.dials = fake.dials.turned({"tokens": TOKENS, "itl_s": 0.001})
    port = int(engine_url.rpartition(":")[2])
    with wire_to(port, seed=1) as first, wire_to(port, seed=2) as second:
        wires = [first, second][:engines]
        door = open_door([f"http://127.0.0.1:{wire.port}" for wire in wires], replicas__check_s=600)
        for wire in wires:
            wire.share_cut = SHARE
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda number: whole_answer(door.chat(stream=number % 2 == 0)), range(REQUESTS)))
        cuts = sum(wire.cut for wire in wires)
        came = [answer for answer in answers if answer is not None]
        retries = door.metric("retries_total")
        print(f"{REQUESTS} requests, {cuts} resets: {len(came)} answers, {retries:.0f} retries")
        assert len(came) == len(set(came))
        assert cuts > 0
        assert fake.record.count <= REQUESTS + retries
        assert REQUESTS - len(came) <= cuts * 16  # the worst is an engine that is left alone for a second
        door.assert_idle()
