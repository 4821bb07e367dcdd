"""docs/media.md: the figures of `detail` and `fit` are what the plan gives."""

import re
from pathlib import Path

from kimi_serve.gateway.fitting import told
from kimi_serve.gateway.fitting.plan import FITS, STEPS, Bounds, Picture, Plan, decide, shrunk
from kimi_serve.gateway.fitting.told import Told
from kimi_serve.gateway.fitting.turns import MARKER
from kimi_serve.gateway.settings import Media
from kimi_serve.inputs.geometry import Geometry

DOC = (Path(__file__).parents[3] / "docs" / "media.md").read_text("utf-8")
INSTRUCT = Geometry(patch_size=14, merge_height=2, merge_width=2, in_token_limit=4096)
SIZE = r"(\d+)x(\d+)"


def found(pattern: str) -> list[list[int]]:
    rows = re.findall(pattern, DOC, re.MULTILINE)
    return [[int(number.replace(",", "")) for number in row] for row in rows]


def test_the_examples_of_low_detail_are_computed() -> None:
    rows = [
        tuple(map(int, row)) for row in re.findall(rf"^\| {SIZE} \| (\d+) \| {SIZE} \| (\d+) \|$", DOC, re.MULTILINE)
    ]
    assert len(rows) == 6
    for width, height, tokens, smaller_width, smaller_height, fewer in rows:
        assert INSTRUCT.num_tokens(width, height) == tokens
        smaller = (
            shrunk(INSTRUCT, (width, height), Media().low_tokens) if tokens > Media().low_tokens else (width, height)
        )
        assert smaller == (smaller_width, smaller_height)
        assert INSTRUCT.num_tokens(*smaller) == fewer


def planned(fit: str) -> Plan:
    pictures = [Picture((600, 400), 330, None, True)] * 5
    return decide(fit, pictures, INSTRUCT, Bounds(1000, Media().floor_tokens, 0), lambda gone: 0)  # type: ignore[arg-type]


def test_the_examples_of_fit_are_computed() -> None:
    ((steps, width, height, tokens),) = re.findall(
        rf"^\| `downscale` \| (\d+)/256 \| five of {SIZE} \| (\d+) \|$", DOC, re.M
    )
    found = planned("downscale")
    assert (found.steps, found.sizes, found.total) == (int(steps), ((int(width), int(height)),) * 5, int(tokens))
    ((width, height, tokens),) = re.findall(rf"^\| `elide_oldest` \|  ?\| three of {SIZE} \| (\d+) \|$", DOC, re.M)
    found = planned("elide_oldest")
    assert (found.sizes, found.total) == ((None, None, *[(int(width), int(height))] * 3), int(tokens))
    ((steps, each, all_of_them),) = re.findall(
        r"factor (\d+)/256 would give each picture (\d+) tokens, which is ([\d,]+)", DOC
    )
    next_size = shrunk(INSTRUCT, (600, 400), 330 * int(steps) // STEPS)
    assert int(steps) == planned("downscale").steps + 1
    assert INSTRUCT.num_tokens(*next_size) == int(each)
    assert int(all_of_them.replace(",", "")) == 5 * int(each) > 1000


def test_every_value_and_field_is_documented() -> None:
    fields = Told("error", [1], [1], 1, 1, STEPS).whole()
    names = [*FITS, MARKER, told.HEADER, *fields, "low", "high", "auto", "original"]
    assert [name for name in names if f"`{name}`" not in DOC] == []
