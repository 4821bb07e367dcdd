"""`kimi-serve batch` against a gateway: every line once, whenever it was stopped."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gateway.batches.conftest import Json, chat_body, lines_of
from tests.gateway.conftest import Front, Start
from tests.gateway.test_tenants import made


@pytest.fixture
def front(start: Start) -> Front:
    return start(dials={"tokens": 2})


def command(front: Front, folder: Path, *more: str) -> list[str]:
    files = [str(folder / "in.jsonl"), str(folder / "out.jsonl")]
    return [sys.executable, "-m", "kimi_serve.cli", "batch", *files, "--url", front.url, *more]


def run(front: Front, folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(front, folder, *more), capture_output=True, text=True, check=False)


def told(folder: Path) -> list[Json]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]


def test_every_line_is_answered_and_the_end_is_told(front: Front, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines_of([chat_body()] * 30))
    ended = run(front, tmp_path)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert "30/30, 0 failed" in ended.stderr
    assert sorted(str(line["custom_id"]) for line in told(tmp_path)) == sorted(f"line-{number}" for number in range(30))
    assert {line["response"]["status_code"] for line in told(tmp_path)} == {200}  # type: ignore[index]
    again = run(front, tmp_path)
    assert (again.returncode, front.engines[0].record.count) == (0, 30)


def test_a_line_that_is_refused_is_told_and_counted(front: Front, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines_of([chat_body(), chat_body(max_tokens=90_000)]))
    ended = run(front, tmp_path)
    assert (ended.returncode, "2/2, 1 failed" in ended.stderr) == (1, True)
    assert sorted(line["response"]["status_code"] for line in told(tmp_path)) == [200, 400]  # type: ignore[index]


def test_it_goes_on_where_it_was_killed(start: Start, tmp_path: Path) -> None:
    front = start(dials={"ttft_s": 0.05})
    (tmp_path / "in.jsonl").write_bytes(lines_of([chat_body()] * 200))
    output = tmp_path / "out.jsonl"
    for _ in range(2):
        before = front.engines[0].record.count
        running = subprocess.Popen(command(front, tmp_path, "--concurrency", "4"), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while front.engines[0].record.count < before + 40:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        running.wait()
        with output.open("ab") as file:
            file.write(b'{"custom_id": "line-199", "resp')  # as where the machine itself went down
    assert run(front, tmp_path).returncode == 0
    assert sorted(str(line["custom_id"]) for line in told(tmp_path)) == sorted(
        f"line-{number}" for number in range(200)
    )
    assert front.engines[0].record.count <= 200 + 2 * 4


def test_a_person_sees_a_bar(front: Front, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines_of([chat_body()] * 3))
    mine, theirs = pty.openpty()
    subprocess.run(command(front, tmp_path), stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(mine, 65_536).decode()
    os.close(mine)
    assert "[..............................] 0/3" in shown
    assert "[##############################] 3/3, 0 failed" in shown


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("{}\n", (), "line 1: "),
        (None, (), "in.jsonl: No such file"),
        ("", (), "no line"),
        (lines_of([chat_body()]).decode(), ("--endpoint", "/v1/embeddings"), "--endpoint: "),
        (lines_of([chat_body()]).decode(), ("--concurrency", "0"), "--concurrency: 0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(
    front: Front, tmp_path: Path, text: str | None, options: tuple[str, ...], said: str
) -> None:
    if text is not None:
        (tmp_path / "in.jsonl").write_text(text)
    ended = run(front, tmp_path, *options)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert not (tmp_path / "out.jsonl").exists()
    assert front.engines[0].record.count == 0


def test_a_file_of_another_kind_is_not_written_to(front: Front, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines_of([chat_body()]))
    (tmp_path / "out.jsonl").write_text("my novel\nsecond line")
    assert "is not the output of a batch" in run(front, tmp_path).stderr
    assert (tmp_path / "out.jsonl").read_text() == "my novel\nsecond line"


def test_a_key_is_sent_and_a_server_that_is_away_is_a_failure(start: Start, tmp_path: Path) -> None:
    key = made(tmp_path / "keys.json", "acme")["authorization"].removeprefix("Bearer ")
    front = start(keys={"file": tmp_path / "keys.json"})
    (tmp_path / "in.jsonl").write_bytes(lines_of([chat_body()]))
    assert run(front, tmp_path).returncode == 1
    assert [line["response"]["status_code"] for line in told(tmp_path)] == [401]  # type: ignore[index]
    (tmp_path / "out.jsonl").unlink()
    assert run(front, tmp_path, "--key", key).returncode == 0
    (tmp_path / "out.jsonl").unlink()
    away = run(front, tmp_path, "--attempts", "1", "--url", "http://127.0.0.1:9")
    assert (away.returncode, told(tmp_path)[0]["response"]["status_code"]) == (1, 502)  # type: ignore[index]
