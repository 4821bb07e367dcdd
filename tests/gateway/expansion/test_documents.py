"""PDFs in conversations reach the engine as pictures of their pages, over real sockets."""

from __future__ import annotations

import base64
import io
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from PIL import Image
from reportlab.lib.pagesizes import A4

from kimi_serve.testing.answers import ROUTES, Kind
from tests.gateway.conftest import MODEL, Front, Start
from tests.gateway.expansion.corpus import LANDSCAPE, as_url, colour, pdf
from tests.gateway.expansion.films import film
from tests.gateway.test_gateway import image, png
from tests.gateway.test_metrics import sample

PATHS = {kind: path for path, kind in ROUTES.items()}
COUNTS: dict[Kind, str] = {
    "chat": "/tokenize",
    "messages": "/v1/messages/count_tokens",
    "responses": "/v1/responses/input_tokens",
}
KINDS: tuple[Kind, ...] = ("chat", "messages", "responses")
Json = dict[str, object]


def part_of(kind: Kind, data: bytes, **options: object) -> Json:
    if kind == "messages":
        source = {"type": "base64", "media_type": "application/pdf", "data": base64.b64encode(data).decode()}
        return {"type": "document", "source": source, **options}
    if kind == "responses":
        return {"type": "input_file", "filename": "x.pdf", "file_data": as_url(data), **options}
    return {"type": "file", "file": {"filename": "x.pdf", "file_data": as_url(data)}, **options}


def body_of(kind: Kind, content: list[Json]) -> Json:
    turn = [{"role": "user", "content": content}]
    if kind == "responses":
        return {"model": MODEL, "input": turn}
    return {"model": MODEL, "max_tokens": 8, "messages": turn}


def post(front: Front, kind: Kind, *content: Json) -> httpx.Response:
    return front.http.post(PATHS[kind], json=body_of(kind, list(content)))


def sent(front: Front) -> list[Json]:
    """What the last request's only message holds at the engine."""
    body = json.loads(front.engines[0].record.requests[-1].body)
    content: list[Json] = body.get("messages", body.get("input"))[0]["content"]
    return content


def shown(part: Json) -> Image.Image:
    if part["type"] == "image":
        data = part["source"]["data"]  # type: ignore[index]
    else:
        url = part["image_url"]
        data = (url["url"] if isinstance(url, dict) else str(url)).partition(",")[2]
    return Image.open(io.BytesIO(base64.b64decode(str(data))))


def number_of(page: Image.Image) -> int:
    """By the colour of the bar."""
    seen = page.convert("RGB").getpixel((page.width // 2, page.height * 3 // 4))
    assert isinstance(seen, tuple)
    return min(range(1, 40), key=lambda one: sum(abs(a * 255 - b) for a, b in zip(colour(one), seen, strict=True)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_reaches_the_engine_as_its_pages_in_its_place(start: Start, kind: Kind) -> None:
    front = start()
    before, behind = ({"type": "input_text" if kind == "responses" else "text", "text": text} for text in "ab")
    answer = post(front, kind, before, part_of(kind, pdf(3)), behind)
    assert answer.status_code == 200, answer.text
    first, *pages, last = sent(front)
    assert (first, last) == (before, behind)
    assert [number_of(shown(page)) for page in pages] == [1, 2, 3]
    front.assert_idle()


@pytest.mark.parametrize("kind", KINDS)
def test_its_tokens_are_its_pictures(idle: Front, kind: Kind) -> None:
    def tokens(*content: Json) -> int:
        counted = idle.http.post(COUNTS[kind], json=body_of(kind, list(content))).json()
        return int(counted["count" if kind == "chat" else "input_tokens"])

    size = idle.gateway.meter.geometry.largest(*A4, tokens=1024, scale=200 / 72)
    data = png(*size)
    if kind == "messages":
        source = {"type": "base64", "media_type": "image/png", "data": data.partition(",")[2]}
        picture: Json = {"type": "image", "source": source}
    else:
        picture = {"type": "input_image", "image_url": data} if kind == "responses" else image(data)
    assert tokens(part_of(kind, pdf(3))) == tokens(*[picture] * 3)


@pytest.mark.parametrize(
    ("pages", "numbers"),
    [("2", [2]), ("1-2,5", [1, 2, 5]), ("4-", [4, 5]), ("5,1-2,2", [5, 1, 2]), (" 3 , 1 ", [3, 1])],
)
def test_a_range_of_pages_is_shown_in_its_order(start: Start, pages: str, numbers: list[int]) -> None:
    front = start()
    assert post(front, "chat", part_of("chat", pdf(5), pages=pages)).status_code == 200
    assert [number_of(shown(page)) for page in sent(front)] == numbers


def test_the_text_layer_stands_behind_each_page_where_it_is_asked_for(start: Start) -> None:
    front = start()
    assert post(front, "messages", part_of("messages", pdf(2), text=True)).status_code == 200
    texts = [part["text"] for part in sent(front) if part["type"] == "text"]
    assert texts == ["This is page 1.", "This is page 2."]
    assert [part["type"] for part in sent(front)] == ["image", "text"] * 2


def test_each_page_is_as_large_as_its_tokens_allow(start: Start) -> None:
    front = start(documents={"page_tokens": 40})
    slip, poster = (150.0, 2000.0), (9000.0, 9000.0)
    assert post(front, "chat", part_of("chat", pdf(4, sizes=(A4, LANDSCAPE, slip, poster)))).status_code == 200
    geometry = front.gateway.meter.geometry
    for part, (width, height) in zip(sent(front), (A4, LANDSCAPE, slip, poster), strict=True):
        size = shown(part).size
        assert geometry.resized(*size) == size
        assert 30 <= geometry.num_tokens(*size) <= 40
        assert size[0] / size[1] == pytest.approx(width / height, rel=0.02)


def test_a_small_page_is_not_drawn_beyond_the_resolution(start: Start) -> None:
    front = start(documents={"max_dpi": 72})
    assert post(front, "chat", part_of("chat", pdf(1, sizes=((100.0, 60.0),)))).status_code == 200
    assert shown(sent(front)[0]).size == (100, 60)


def test_a_drawn_page_is_png_and_a_photograph_jpeg(start: Start) -> None:
    front = start()
    post(front, "chat", part_of("chat", pdf(1)), part_of("chat", pdf(1, photograph=True)))
    assert [shown(part).format for part in sent(front)] == ["PNG", "JPEG"]


def test_what_was_filled_into_a_form_is_drawn(start: Start) -> None:
    front = start()
    post(front, "chat", part_of("chat", pdf(1)), part_of("chat", pdf(1, filled_in=True)))
    dark = [sum(shown(part).convert("L").histogram()[:128]) for part in sent(front)]
    assert dark[1] > dark[0] + 50


def test_the_same_document_makes_the_same_pictures_so_that_caches_know_them(start: Start) -> None:
    front = start(workers={"cache_bytes": 0})
    for _ in range(2):
        post(front, "chat", part_of("chat", pdf(2)))
    first, second = (
        [part["uuid"] for part in json.loads(one.body)["messages"][0]["content"]]
        for one in front.engines[0].record.requests
    )
    assert first == second
    assert sample(front, "kimi_serve_elided_images_total") == 2


def test_a_document_in_a_tools_result_is_shown(start: Start) -> None:
    front = start()
    call = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [part_of("messages", pdf(2), text=True)]}
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    answer = front.http.post("/v1/messages", json={"model": MODEL, "max_tokens": 8, "messages": turns})
    assert answer.status_code == 200, answer.text
    got = json.loads(front.engines[0].record.requests[-1].body)["messages"][2]["content"][0]["content"]
    assert [part["type"] for part in got] == ["image", "text", "image", "text"]


def test_an_error_behind_a_document_names_the_place_that_the_client_knows(idle: Front) -> None:
    bad = image("data:image/png;base64,AAAA")
    answer = post(idle, "chat", part_of("chat", pdf(3)), bad)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[0].content[1]"


def test_documents_are_counted(start: Start) -> None:
    front = start()
    post(front, "chat", part_of("chat", pdf(3)), image(png()))
    assert sample(front, "kimi_serve_expanded_files_total", kind="document") == 1
    assert sample(front, "kimi_serve_expanded_images_total", kind="document") == 3
    assert sample(front, "kimi_serve_expansion_duration_seconds_count", kind="document") == 1
    assert sample(front, "kimi_serve_images_total") == 4
    assert sample(front, "kimi_serve_busy_workers") == 0


REFUSED: dict[str, tuple[bytes, Json, str, str]] = {
    "encrypted": (pdf(1, password="secret"), {}, "encrypted_document", "remove its password"),
    "damaged": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", {}, "invalid_document", "is damaged"),
    "too many pages": (pdf(101), {}, "document_too_large", "101 pages to show, and 100 are the most"),
    "a page that is not there": (pdf(2), {"pages": "1-3"}, "invalid_value", "pages: 3 is not there"),
    "pages backwards": (pdf(2), {"pages": "2-1"}, "invalid_value", "content[0].pages: '2-1'"),
    "no pages": (pdf(2), {"pages": ""}, "invalid_value", "content[0].pages: "),
    "pages as a number": (pdf(2), {"pages": 1}, "invalid_value", "content[0].pages: 1"),
    "text as a number": (pdf(2), {"text": 1}, "invalid_value", "content[0].text: 1"),
}


@pytest.mark.parametrize(("data", "options", "code", "said"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_document_that_cannot_be_shown_is_refused_with_what_to_do(
    idle: Front, kind: Kind, data: bytes, options: Json, code: str, said: str
) -> None:
    answer = post(idle, kind, part_of(kind, data, **options))
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (400, code), answer.text
    where = f"{'input' if kind == 'responses' else 'messages'}[0].content[0]"
    assert answer.json()["error"]["message"].startswith(where)
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"documents": {"max_bytes": 500}}, "document_too_large", "limit of 500"),
        ({"documents": {"max_text_chars": 20}}, "document_too_large", "more text than the"),
        ({"dials": {"max_model_len": 100}}, "context_length_exceeded", "choose fewer `pages`"),
        ({"media": {"max_images": 2}}, "too_many_images", "may hold 2 more images"),
        ({"workers": {"processes": 0}}, "unsupported_media_type", "not taken here"),
        ({"body": {"max_bytes": 20_000}}, "document_too_large", "fits into a request's body"),
    ],
)
def test_every_limit_of_documents_is_kept(start: Start, settings: Json, code: str, said: str) -> None:
    front = start(**settings)
    answer = post(front, "chat", part_of("chat", pdf(25), text=True))
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (400, code), answer.text
    assert said in answer.json()["error"]["message"]
    assert front.engines[0].record.count == 0
    front.assert_idle()


def test_a_document_and_a_video_are_fetched_where_they_are_remote(start: Start, tmp_path: Path) -> None:
    size = (tmp_path / "x.pdf").write_bytes(pdf(2)) + (tmp_path / "x.mp4").write_bytes(film())
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        port = server.server_address[1]
        front = start(media={"allow_private": ["127.0.0.1/32"], "ports": [port]})
        address = f"http://127.0.0.1:{port}/x"
        answer = front.chat(
            [
                {"type": "file", "file": {"file_url": f"{address}.pdf"}},
                {"type": "video_url", "video_url": {"url": f"{address}.mp4"}, "frames": 2, "timestamps": False},
            ],
            max_tokens=4,
        )
        server.shutdown()
    assert answer.status_code == 200, answer.text
    assert [shown(part).format for part in sent(front)] == ["PNG", "PNG", "JPEG", "JPEG"]
    assert sample(front, "kimi_serve_fetched_bytes_total") == size
    front.assert_idle()
