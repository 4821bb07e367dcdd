"""The page's files over a real socket: which there are, what a browser may do with them, and when there are none."""

import re
from pathlib import Path

import httpx
import pytest

from kimi_serve.gateway.playground.route import PAGE, POLICY, TYPES
from tests.gateway.conftest import Front, Start

FOLDER = Path(__file__).parents[3] / "kimi_serve" / "gateway" / "playground" / "page"
PARTS = sorted(set(TYPES) - {PAGE})
MOST_BYTES = 60_000  # all of them together


def address(name: str) -> str:
    return "/playground" if name == PAGE else f"/playground/{name}"


def get(front: Front, name: str, **headers: str) -> httpx.Response:
    return front.http.get(address(name), headers={key.replace("_", "-"): value for key, value in headers.items()})


def texts(ending: str) -> dict[str, str]:
    return {name: (FOLDER / name).read_text("utf-8") for name in TYPES if name.endswith(ending)}


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_file_comes_as_it_is_with_its_type(front: Front, name: str) -> None:
    answer = get(front, name)
    assert answer.status_code == 200
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"] == f"{TYPES[name]}; charset=utf-8"


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_file_says_what_a_browser_may_do_with_it(front: Front, name: str) -> None:
    headers = get(front, name).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    told = dict(part.strip().split(" ", 1) for part in POLICY.split(";"))
    assert told.pop("img-src") == "'self' data: blob:"
    assert told.pop("media-src") == "blob:"
    assert {name for name, sources in told.items() if sources == "'self'"} == {"script-src", "style-src", "connect-src"}
    assert {name for name, sources in told.items() if sources == "'none'"} == {
        "default-src", "frame-ancestors", "base-uri", "form-action"
    }  # fmt: skip
    assert len(told) == 7


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_file_that_the_browser_has_is_not_sent_again(front: Front, name: str) -> None:
    tag = get(front, name).headers["etag"]
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = get(front, name, if_none_match=given)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert get(front, name, if_none_match='"other"').status_code == 200


def test_two_files_have_two_tags(front: Front) -> None:
    assert len({get(front, name).headers["etag"] for name in TYPES}) == len(TYPES)


@pytest.mark.parametrize("name", [PAGE, "main.js"])
def test_head_is_get_without_the_body(front: Front, name: str) -> None:
    whole, head = get(front, name), front.http.head(address(name))
    assert (head.status_code, head.content) == (200, b"")
    for header in ("content-length", "content-type", "etag", "content-security-policy"):
        assert head.headers[header] == whole.headers[header]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/playground", "/playground/main.js"])
def test_no_other_method_is_taken(front: Front, method: str, path: str) -> None:
    answer = front.http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "path", ["index.html", "route.py", "__init__.py", "..%2froute.py", "%2e%2e/route.py", "main.js/", "MAIN.JS", ""]
)
def test_nothing_but_the_table_is_served(front: Front, path: str) -> None:
    answer = front.http.get(f"/playground/{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/playground", "/playground/main.js"])
def test_it_is_not_there_unless_it_is_turned_on(untouched: Front, path: str) -> None:
    answer = untouched.http.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_it_needs_no_key_and_shows_nothing_that_does(start: Start) -> None:
    front = start(playground={"enabled": True}, keys={"single": "secret"})
    assert front.http.get("/playground").status_code == 200
    assert front.http.get("/v1/models").status_code == 401


def test_like_docs_it_is_not_in_the_document(front: Front) -> None:
    assert front.http.get("/docs").status_code == 200
    assert [path for path in front.http.get("/openapi.json").json()["paths"] if "play" in path or "doc" in path] == []


def test_a_look_at_it_is_counted_under_one_name(front: Front) -> None:
    get(front, "main.js")
    front.http.get("/playground/no-such-file")
    routes = set(
        re.findall(r'kimi_serve_requests_total\{.*?route="(/playground[^"]*)"', front.http.get("/metrics").text)
    )
    assert routes <= {"/playground", "/playground/{name}"}
    assert "/playground/{name}" in routes


def test_the_table_holds_every_file_of_the_folder() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(TYPES)


def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MOST_BYTES


def test_every_file_that_another_names_is_served() -> None:
    named = set(re.findall(r'(?:src|href)="playground/([^"]+)"', texts(".html")[PAGE]))
    for text in texts(".js").values():
        named |= set(re.findall(r'from "\./([^"]+)"', text))
    assert named == set(PARTS)


def test_the_page_has_no_script_or_style_of_its_own() -> None:
    page = texts(".html")[PAGE]
    assert re.findall(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page) == []


def test_no_file_names_another_origin() -> None:
    for name, text in {**texts(".js"), **texts(".css"), **texts(".html")}.items():
        found = [url for url in re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[\w/]+", text) if "www.w3.org" not in url]
        assert found == [], name


def test_no_script_makes_markup_or_code_of_text() -> None:
    words = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser|localStorage"
    )
    for name, text in texts(".js").items():
        assert re.findall(words, text) == [], name
