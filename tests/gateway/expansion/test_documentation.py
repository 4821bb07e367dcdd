"""docs/media.md's worked examples of documents, computed again."""

import pytest
from reportlab.lib.pagesizes import A4, LETTER

from kimi_serve.gateway.expansion.child import pdf
from kimi_serve.gateway.expansion.videos import Asked, choose
from kimi_serve.gateway.settings import Documents, Videos
from kimi_serve.inputs.geometry import Geometry
from tests.gateway.media.test_documentation import TEXT, table

LIMITS = {"Instruct, Thinking": 4096, "Thinking-2506": 16384}
PAGES = {"A4": A4, "Letter": LETTER, "slide, 960x540 points": (960.0, 540.0)}


@pytest.mark.parametrize("row", table("page"), ids=lambda row: " ".join(row[:3]))
def test_a_page_costs_what_the_table_says(row: list[str]) -> None:
    page, allowed, model, pixels, dpi, tokens = row
    geometry = Geometry(14, 2, 2, LIMITS[model])
    size = geometry.largest(*PAGES[page], tokens=int(allowed), scale=Documents().max_dpi / 72)
    assert "{}x{}".format(*size) == pixels
    assert round(size[0] / PAGES[page][0] * 72) == int(dpi)
    assert geometry.num_tokens(*size) == int(tokens)


@pytest.mark.parametrize("row", table("video"), ids=lambda row: row[0])
def test_a_video_costs_what_the_table_says(row: list[str]) -> None:
    video, allowed, pixels, tokens, frames, total = row
    width, height = map(int, video.split("x"))
    geometry = Geometry(14, 2, 2, LIMITS["Instruct, Thinking"])
    size = geometry.largest(width, height, tokens=int(allowed), scale=1.0)
    times = [number / 25 for number in range(15_000)]
    chosen = choose(times, 600.0, Asked(None, None, True), Videos())
    assert "{}x{}".format(*size) == pixels
    assert geometry.num_tokens(*size) == int(tokens)
    assert len(chosen) == int(frames)
    assert len(chosen) * (int(tokens) + 4) == int(total)


def test_fifty_pages_are_what_the_text_says() -> None:
    geometry = Geometry(14, 2, 2, LIMITS["Instruct, Thinking"])
    page = geometry.num_tokens(*geometry.largest(*A4, tokens=1024, scale=200 / 72))
    assert f"Fifty pages of A4 at 1024 tokens are {50 * (page + 4):,} tokens" in TEXT


def test_the_fields_of_a_part_and_the_quality_are_in_the_text() -> None:
    assert [row[0] for row in table("field of the part")][:2] == ["`pages`", "`text`"]
    assert f"JPEG of quality {pdf._JPEG_QUALITY}" in TEXT
