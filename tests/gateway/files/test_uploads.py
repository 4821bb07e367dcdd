"""OpenAI's files over real sockets: kept once, counted from the first byte, and nobody else's."""

import http.client
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.settings import read
from tests.gateway.conftest import Front, Start, running
from tests.gateway.test_tenants import made
from tests.waiting import eventually

DATA = bytes(range(256)) * 5000  # 1.28 MB: more than is written at once


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def front(start: Start, folder: Path) -> Front:
    return start(files={"folder": folder})


@pytest.fixture
def client(front: Front) -> Iterator[openai.OpenAI]:
    with (
        httpx.Client(trust_env=False) as http,
        openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0, http_client=http) as opened,
    ):
        yield opened


def send(front: Front, data: bytes = b"x", headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    form = {"purpose": "user_data", **fields}
    return front.http.post("/v1/files", data=form, files={"file": ("a.bin", data)}, headers=headers)


def blobs(folder: Path) -> list[Path]:
    return [path for path in (folder / "blobs").glob("??/*") if path.is_file()]


def usage(front: Front, tenant: str = "anonymous") -> tuple[int, int]:
    gateway: Gateway = front.gateway
    assert gateway.archive is not None
    kept = gateway.archive.files.room.of(tenant)
    return kept.bytes, kept.files


def test_openais_client_sends_lists_reads_and_deletes(client: openai.OpenAI, folder: Path) -> None:
    before = int(time.time())
    sent = client.files.create(file=("päge.png", DATA), purpose="vision")
    assert (sent.object, sent.bytes, sent.filename, sent.purpose) == ("file", len(DATA), "päge.png", "vision")
    assert before <= sent.created_at <= int(time.time())
    other = client.files.create(
        file=io.BytesIO(b"{}"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert other.expires_at == other.created_at + 3600
    assert [file.id for file in client.files.list()] == [other.id, sent.id]
    assert [file.id for file in client.files.list(purpose="vision")] == [sent.id]
    assert [file.id for file in client.files.list(limit=1, order="asc")] == [sent.id, other.id]  # page by page
    assert client.files.retrieve(sent.id) == sent
    assert client.files.content(sent.id).content == DATA
    assert client.files.delete(sent.id).deleted
    with pytest.raises(openai.NotFoundError) as refused:
        client.files.retrieve(sent.id)
    assert refused.value.code == "file_not_found"
    assert len(blobs(folder)) == 1


def test_the_same_bytes_are_kept_once_until_the_last_file_with_them_is_gone(front: Front, folder: Path) -> None:
    first, second = (send(front, DATA).json()["id"] for _ in range(2))
    assert first != second
    (kept,) = blobs(folder)
    assert kept.read_bytes() == DATA
    assert oct(kept.stat().st_mode & 0o777) == "0o600"
    assert usage(front) == (2 * len(DATA), 2)
    front.http.delete(f"/v1/files/{first}")
    assert front.http.get(f"/v1/files/{second}/content").content == DATA
    front.http.delete(f"/v1/files/{second}")
    assert blobs(folder) == []
    assert usage(front) == (0, 0)


def test_another_tenants_file_is_not_there(start: Start, tmp_path: Path, folder: Path) -> None:
    mine, others = (made(tmp_path / "keys.json", tenant) for tenant in ("mine", "others"))
    front = start(files={"folder": folder}, keys={"file": tmp_path / "keys.json"})
    file_id = send(front, headers=mine).json()["id"]
    assert front.http.get(f"/v1/files/{file_id}", headers=mine).status_code == 200
    assert front.http.get("/v1/files", headers=others).json()["data"] == []
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        refused = front.http.request(method, f"/v1/files/{file_id}{path}", headers=others)
        unknown = front.http.request(method, f"/v1/files/file-{'0' * 32}{path}", headers=others)
        assert (refused.status_code, refused.headers["x-kimi-serve-reason"]) == (404, "file_not_found")
        assert refused.text.replace(file_id, "") == unknown.text.replace(f"file-{'0' * 32}", "")
    assert front.http.get(f"/v1/files/{file_id}", headers=mine).status_code == 200


def test_without_a_folder_every_route_says_so(idle: Front) -> None:
    for method, path in (
        ("POST", "files"),
        ("GET", "files"),
        ("GET", "files/x"),
        ("GET", "files/x/content"),
        ("DELETE", "files/x"),
        ("POST", "batches"),
        ("GET", "batches"),
        ("GET", "batches/x"),
        ("POST", "batches/x/cancel"),
    ):
        answer = idle.http.request(method, f"/v1/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "files_disabled"), path


@pytest.mark.parametrize(
    ("limits", "code", "status"),
    [
        ({"max_bytes": 1000}, "file_too_large", 413),
        ({"bytes_per_tenant": 1500}, "file_quota_exceeded", 403),
        ({"count_per_tenant": 1}, "file_quota_exceeded", 403),
        ({"total_bytes": 1500}, "files_full", 503),
    ],
)
def test_limits_hold_and_what_is_refused_leaves_nothing(
    start: Start, folder: Path, limits: dict[str, int], code: str, status: int
) -> None:
    front = start(files={"folder": folder, **limits})
    assert send(front, b"a" * 900).status_code == 200
    for _ in range(3):
        refused = send(front, b"b" * 1100)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert usage(front) == (900, 1)
    assert len(blobs(folder)) == 1
    assert list((folder / "incoming").iterdir()) == []
    front.assert_idle()


class Trickle:
    """An upload whose body comes as it is told."""

    def __init__(self, front: Front, announced: int) -> None:
        head = "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        self.socket = socket.create_connection(("127.0.0.1", int(front.url.rpartition(":")[2])), timeout=20)
        self.send(f"{head}content-length: {announced}\r\n\r\n".encode())
        self.send(b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n')
        self.send(b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n')

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, Any]]:
        with self.socket, http.client.HTTPResponse(self.socket) as response:
            response.begin()
            return response.status, json.loads(response.read())


def test_what_is_under_way_counts_before_all_of_it_is_here(start: Start, folder: Path) -> None:
    front = start(files={"folder": folder, "bytes_per_tenant": 5_000_000})
    slow = Trickle(front, 4_000_000)
    slow.send(b"x" * 3_500_000)
    eventually(lambda: usage(front)[0] > 2_000_000, 20)
    assert send(front, b"y" * 3_000_000).json()["error"]["code"] == "file_quota_exceeded"
    slow.socket.close()
    eventually(lambda: usage(front) == (0, 0), 20)
    assert send(front, b"y" * 3_000_000).status_code == 200
    assert len(blobs(folder)) == 1
    assert list((folder / "incoming").iterdir()) == []
    front.assert_idle()


def test_an_upload_takes_little_memory_however_large_it_is(front: Front) -> None:
    most, is_over = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not is_over.wait(0.002):
            most = max(most, front.gateway.ledger.total)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        assert send(front, os.urandom(30_000_000)).status_code == 200
    finally:
        is_over.set()
        looking.join()
    assert 0 < most < 3_000_000
    front.assert_idle()


def test_a_slow_upload_is_refused_in_time(start: Start, folder: Path) -> None:
    front = start(files={"folder": folder, "timeout_s": 0.3})
    slow = Trickle(front, 10_000)
    slow.send(b"x" * 5000)
    status, told = slow.answer()
    assert (status, told["error"]["code"]) == (408, "body_timeout")
    assert usage(front) == (0, 0)


FORM = "multipart/form-data; boundary=b"
PURPOSE = '--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = '--b\r\ncontent-disposition: form-data; name="file"; filename="../../x"\r\n\r\ndata\r\n'
BROKEN: dict[str, tuple[str, str, str, str]] = {
    "no form": ("application/json", "{}", "invalid_upload", "content-type: "),
    "no boundary": ("multipart/form-data", FILE, "invalid_upload", "content-type: "),
    "long boundary": (f"multipart/form-data; boundary={'b' * 3000}", FILE, "invalid_upload", "boundary"),
    "not multipart": (FORM, "nothing of the kind", "invalid_upload", "boundary"),
    "cut off": (FORM, PURPOSE + FILE, "invalid_upload", "breaks off"),
    "empty": (FORM, "", "invalid_upload", "breaks off"),
    "no file": (FORM, f"{PURPOSE}--b--\r\n", "invalid_value", "file: is missing"),
    "no purpose": (FORM, f"{FILE}--b--\r\n", "invalid_value", "purpose: is missing"),
    "two files": (FORM, f"{PURPOSE}{FILE}{FILE}--b--\r\n", "invalid_upload", "twice"),
    "another purpose": (FORM, PURPOSE.replace("batch", "evals") + FILE, "invalid_value", "purpose: 'evals'"),
    "made by batches": (FORM, PURPOSE.replace("batch", "batch_output") + FILE, "invalid_value", "purpose: "),
    "another field": (FORM, PURPOSE.replace('"purpose"', '"color"') + FILE, "invalid_value", "color: "),
    "much beside it": (FORM, PURPOSE.replace("batch", "x" * 5000) + FILE, "invalid_upload", "4096"),
    "many parts": (FORM, PURPOSE * 20 + FILE, "invalid_upload", "16 parts"),
    "endless header": (FORM, f"--b\r\nx: {'y' * 90000}", "invalid_upload", "boundary"),
    "no anchor": (
        FORM,
        PURPOSE.replace('"purpose"', '"expires_after[seconds]"').replace("batch", "3600") + f"{PURPOSE}{FILE}--b--\r\n",
        "invalid_value",
        "expires_after.anchor: ",
    ),
}


@pytest.mark.parametrize(("kind", "body", "code", "said"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_upload_is_refused_and_leaves_nothing(
    files_front: Front, kind: str, body: str, code: str, said: str
) -> None:
    answer = files_front.http.post("/v1/files", content=body.encode(), headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert said in answer.json()["error"]["message"]
    assert usage(files_front) == (0, 0)
    files_front.assert_idle()


@pytest.fixture(scope="module")
def files_front(untouched: Front, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """One gateway for all bad uploads."""
    replicas = {"urls": untouched.gateway.settings.replicas.urls, "check_s": 0.2}
    settings = read(None, checkpoint=checkpoint, replicas=replicas, files={"folder": tmp_path_factory.mktemp("bad")})
    with running(settings, untouched.engines) as front:
        yield front


def test_a_filename_is_a_name_and_no_path(front: Front) -> None:
    body = f"{PURPOSE}{FILE}--b--\r\n".encode()
    sent = front.http.post("/v1/files", content=body, headers={"content-type": FORM}).json()
    assert (sent["filename"], sent["bytes"]) == ("x", 4)


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "order=up", "purpose=evals"])
def test_a_list_is_asked_for_in_its_own_words(front: Front, query: str) -> None:
    answer = front.http.get(f"/v1/files?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, query.partition("=")[0])


def test_an_expired_file_is_gone_with_its_bytes(start: Start, folder: Path) -> None:
    front = start(files={"folder": folder, "expire_s": 1, "sweep_s": 0.1})
    file_id = send(front).json()["id"]
    eventually(lambda: front.http.get(f"/v1/files/{file_id}").status_code == 404, 20)
    eventually(lambda: blobs(folder) == [], 20)
    assert usage(front) == (0, 0)


def test_a_range_of_a_file_can_be_read(front: Front) -> None:
    file_id = send(front, DATA).json()["id"]
    part = front.http.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=250-259"})
    assert (part.status_code, part.content) == (206, DATA[250:260])
    assert part.headers["x-content-type-options"] == "nosniff"
    assert part.headers["content-disposition"].startswith("attachment")


def test_uploads_and_what_is_kept_are_counted(front: Front) -> None:
    send(front, b"x" * 1000)
    shown = front.http.get("/metrics").text
    for line in ("uploaded_files_total 1.0", "uploaded_file_bytes_total 1000.0", "files 1.0", "file_bytes 1000.0"):
        assert f"\nkimi_serve_{line}\n" in shown
