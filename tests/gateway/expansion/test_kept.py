"""A file that is sent again is not read again: what it became is kept, for its tenant, within a number of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from tests.gateway.conftest import Front, Start
from tests.gateway.expansion.corpus import as_url, pdf
from tests.gateway.expansion.films import film
from tests.gateway.expansion.test_documents import part_of, post, sent
from tests.gateway.test_metrics import sample
from tests.gateway.test_tenants import made


def read(front: Front, kind: str = "document") -> tuple[float, float]:
    """How many were read, and how many were not read again."""
    names = ("kimi_serve_expanded_files_total", "kimi_serve_kept_files_total")
    first, again = (sample(front, name, kind=kind) for name in names)
    return first, again


def parts(front: Front, url: str) -> httpx.Response:
    return front.chat([{"type": "video_url", "video_url": {"url": url}, "frames": 3}], max_tokens=4)


def test_a_history_that_is_sent_again_is_not_read_again(start: Start) -> None:
    front, data = start(), pdf(3)
    for _ in range(3):
        assert post(front, "chat", part_of("chat", data, text=True)).status_code == 200
    bodies = [json.loads(one.body)["messages"][0]["content"] for one in front.engines[0].record.requests]
    told = [[(part["type"], part.get("uuid") or part.get("text")) for part in parts] for parts in bodies]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) == 6
    assert read(front) == (1, 2)
    assert sample(front, "kimi_serve_expanded_images_total", kind="document") == 3
    front.assert_idle()


def test_a_video_is_kept_too(start: Start) -> None:
    front, url = start(), as_url(film("mp4"), "video/mp4")
    answers = [parts(front, url) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert read(front, "video") == (1, 1)


def test_the_dialect_does_not_matter_and_what_is_asked_of_the_file_does(start: Start) -> None:
    front, data = start(), pdf(3)
    post(front, "chat", part_of("chat", data, pages="2"))
    assert len(sent(front)) == 1
    assert post(front, "messages", part_of("messages", data, pages="2")).status_code == 200
    assert read(front) == (1, 1)
    post(front, "chat", part_of("chat", data, pages="1-2"))
    assert len(sent(front)) == 2
    assert read(front) == (2, 1)


def test_another_tenant_meets_nothing_of_it(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    mine, others = (made(keys, tenant) for tenant in ("mine", "others"))
    front = start(keys={"file": keys})
    for key in (mine, others, mine):
        front.http.headers.update(key)
        assert post(front, "chat", part_of("chat", pdf(1))).status_code == 200
    assert read(front) == (2, 1)


def test_the_limits_of_the_prompt_hold_for_what_is_kept(start: Start) -> None:
    front, data = start(media={"max_images": 4}), pdf(3)
    assert post(front, "chat", part_of("chat", data)).status_code == 200
    answer = post(front, "chat", part_of("chat", data), part_of("chat", data))
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (400, "too_many_images")
    assert "3 pages to show, and the prompt may hold 1 more images" in answer.json()["error"]["message"]
    front.assert_idle()


def test_its_bytes_count_in_the_request_that_uses_it(start: Start) -> None:
    measured, part = start(), part_of("chat", pdf(2))
    post(measured, "chat", part)
    pages = sum(len(str(page["image_url"])) for page in sent(measured))
    front = start(body={"in_flight_bytes": 2 * len(json.dumps(part)) + pages * 3 // 2})
    assert post(front, "chat", part).status_code == 200
    answer = post(front, "chat", part, part)
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (413, "body_too_large"), answer.text
    assert read(front) == (1, 1)
    front.assert_idle()


def test_nothing_is_kept_where_no_bytes_are_given_for_it(start: Start) -> None:
    front = start(workers={"cache_bytes": 0})
    for _ in range(2):
        post(front, "chat", part_of("chat", pdf(1)))
    assert read(front) == (2, 0)
