"""The page's files, and what a browser may do with them. Knows names, types and headers; nothing of their content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

PAGE: Final = "index.html"
_FOLDER: Final = Path(__file__).parent / "page"
_HTML, _STYLE, _SCRIPT, _SVG = "text/html", "text/css", "text/javascript", "image/svg+xml"
TYPES: Final = {
    PAGE: _HTML,
    "icon.svg": _SVG,
    "style.css": _STYLE,
    "answer.css": _STYLE,
    "main.js": _SCRIPT,
    "announce.js": _SCRIPT,
    "answer.js": _SCRIPT,
    "api.js": _SCRIPT,
    "attachments.js": _SCRIPT,
    "code.js": _SCRIPT,
    "conversation.js": _SCRIPT,
    "cost.js": _SCRIPT,
    "dialog.js": _SCRIPT,
    "dom.js": _SCRIPT,
    "points.js": _SCRIPT,
    "settings.js": _SCRIPT,
    "sse.js": _SCRIPT,
}
# Nothing but its own files: no inline script or style, no other origin, no frame around it, no form that leaves.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS: Final = {
    "cache-control": "no-cache",  # kept, but asked about by its tag every time: the files change together
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class _File:
    def __init__(self, name: str) -> None:
        self._body = (_FOLDER / name).read_bytes()
        self._type = f"{TYPES[name]}; charset=utf-8"
        self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'

    def answer(self, request: Request) -> Response:
        headers = {**_HEADERS, "etag": self._tag}
        if self._is_known(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(self._body, headers={**headers, "content-type": self._type})

    def _is_known(self, tags: str) -> bool:
        return any(tag.strip().removeprefix("W/") in (self._tag, "*") for tag in tags.split(","))


def router() -> APIRouter:
    """Read once, here: what is served is what was there at the start. As /docs, the routes are not in the document."""
    files = {name: _File(name) for name in TYPES}
    page = files.pop(PAGE)

    async def whole(request: Request) -> Response:
        return page.answer(request)

    async def part(request: Request, name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return files[name].answer(request)

    made = APIRouter(include_in_schema=False)
    made.add_api_route("/playground", whole, methods=["GET", "HEAD"])
    made.add_api_route("/playground/{name}", part, methods=["GET", "HEAD"])
    return made
