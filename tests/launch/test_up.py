"""`kimi-serve up` from start to stop, in real processes and on real sockets; only vLLM is a stand-in."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kimi_serve.launch import up

START_TIMEOUT = 60.0


@contextmanager
def running(*arguments: object, mode: str = "", **environ: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "kimi_serve.cli", "up", *map(str, arguments)]
    env = {**os.environ, "FAKE_VLLM": mode, **environ}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.terminate()  # or what it has started would live on
            process.wait(30)
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"{text!r} was never printed: {seen} {process.stderr.read() if process.stderr else ''}")


def processes_mentioning(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and word.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_prints_the_url_and_a_curl_line_when_the_engine_answers(checkpoint: Path, vllm: Path, port: int) -> None:
    with running(checkpoint, "--vllm", vllm, "--port", port, "--served-model-name", "kimi") as process:
        seen = read_until(process, "Ctrl-C")
        assert f"ready: http://127.0.0.1:{port}/v1 (model 'kimi')" in seen
        assert f"in a browser: http://127.0.0.1:{port}/playground" in seen
        assert f"curl -s http://127.0.0.1:{port}/v1/chat/completions" in seen
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_page_that_is_turned_off_is_not_promised(checkpoint: Path, vllm: Path, port: int) -> None:
    with running(checkpoint, "--vllm", vllm, "--port", port, KIMI_SERVE_PLAYGROUND__ENABLED="false") as process:
        assert "in a browser" not in read_until(process, "Ctrl-C")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_process_and_a_free_port(
    checkpoint: Path, vllm: Path, port: int, tmp_path: Path, number: signal.Signals
) -> None:
    mark = f"mark-of-{tmp_path.name}-{port}"
    with running(checkpoint, "--vllm", vllm, "--port", port, MARK=mark) as process:
        read_until(process, "Ctrl-C")
        assert len(processes_mentioning(mark)) >= 3  # up, the engine, and the engine's own child
        process.send_signal(number)
        assert process.wait(30) == 0
    assert processes_mentioning(mark) == []
    up.require_free("127.0.0.1", port)


@pytest.mark.slow
def test_a_signal_while_loading_stops_an_engine_that_ignores_it(
    checkpoint: Path, vllm: Path, port: int, tmp_path: Path
) -> None:
    mark = f"mark-of-{tmp_path.name}-{port}"
    with running(checkpoint, "--vllm", vllm, "--port", port, mode="stubborn", MARK=mark) as process:
        assert process.stderr is not None
        assert any("loading weights" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    assert processes_mentioning(mark) == []


def test_an_engine_that_dies_while_loading_is_reported_with_its_last_lines(
    checkpoint: Path, vllm: Path, port: int, tmp_path: Path
) -> None:
    mark = f"mark-of-{tmp_path.name}-{port}"
    with running(checkpoint, "--vllm", vllm, "--port", port, mode="dies", MARK=mark) as process:
        _, errors = process.communicate(timeout=START_TIMEOUT)
    assert process.returncode == 1
    assert "the engine ended with code 1" in errors
    assert "ran out of everything" in errors
    assert processes_mentioning(mark) == []


def test_an_engine_that_crashes_while_serving_ends_the_supervisor(checkpoint: Path, vllm: Path, port: int) -> None:
    with running(checkpoint, "--vllm", vllm, "--port", port, mode="crashes") as process:
        _, errors = process.communicate(timeout=START_TIMEOUT)
    assert process.returncode == 1
    assert "the engine ended with code 7" in errors


def test_an_engine_that_never_answers_is_stopped_after_the_timeout(checkpoint: Path, vllm: Path, port: int) -> None:
    with running(checkpoint, "--vllm", vllm, "--port", port, "--timeout", 1, mode="silent") as process:
        _, errors = process.communicate(timeout=START_TIMEOUT)
    assert process.returncode == 1
    assert "did not answer within 1 s (--timeout)" in errors


def test_a_port_in_use_is_said_before_anything_starts(checkpoint: Path, vllm: Path, port: int, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    with (
        socket.create_server(("127.0.0.1", port)),
        running(checkpoint, "--vllm", vllm, "--port", port, "--log", log) as process,
    ):
        _, errors = process.communicate(timeout=START_TIMEOUT)
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in errors
    assert not log.exists()


def test_the_engines_output_goes_to_the_log(checkpoint: Path, vllm: Path, port: int, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "engine.log"
    with running(checkpoint, "--vllm", vllm, "--port", port, "--log", log) as process:
        read_until(process, "Ctrl-C")
        process.terminate()
        process.wait(30)
    assert "Initializing a V1 LLM engine" in log.read_text()


def test_the_curl_line_is_one_command_that_sends_the_sample_picture() -> None:
    line = up.curl("http://127.0.0.1:1", "it's", needs_key=True).replace("curl -s", "printf '%s\\n'", 1)
    environ = {**os.environ, "VLLM_API_KEY": "key"}
    *others, body = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=True, env=environ
    ).stdout.splitlines()
    assert "Authorization: Bearer key" in others
    request = json.loads(body)
    assert request["model"] == "it's"
    picture = request["messages"][0]["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert base64.b64decode(picture) == up.SAMPLE.read_bytes()


def test_a_free_port_is_none_that_the_system_gives_out_unasked() -> None:
    ports = {up.free_port() for _ in range(50)}
    first = int(up.PORTS_GIVEN_OUT.read_text().split()[0])
    assert min(ports) >= up.LOWEST_PORT
    assert max(ports) < max(first, up.LOWEST_PORT + 1000)
    assert len(ports) > 1
