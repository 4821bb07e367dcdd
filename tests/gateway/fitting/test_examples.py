"""docs/media.md: the figures of `detail` and `fit` are what the plan gives."""

import re
from pathlib import Path

from kimi_serve.gateway.fitting import told
from kimi_serve.gateway.fitting.plan import FITS, STEPS, Bounds, Fit, Picture, Plan, decide, shrunk
from kimi_serve.gateway.fitting.told import Told
from kimi_serve.gateway.fitting.turns import MARKER
from kimi_serve.gateway.settings import Media
from kimi_serve.inputs.geometry import Geometry

DOC = (Path(__file__).parents[3] / "docs" / "media.md").read_text("utf-8")
INSTRUCT = Geometry(patch_size=14, merge_height=2, merge_width=2, in_token_limit=4096)
SIZE = r"(\d+)x(\d+)"


def numbers(pattern: str) -> list[list[int]]:
    rows = re.findall(pattern, DOC, re.MULTILINE)
    return [[int(number.replace(",", "")) for number in row] for row in rows]


def planned(fit: Fit) -> Plan:
    pictures = [Picture((600, 400), 330, None, True)] * 5
    return decide(fit, pictures, INSTRUCT, Bounds(1000, Media().floor_tokens, 0), lambda gone: 0)


def test_the_examples_of_low_detail_are_computed() -> None:
    rows = numbers(rf"^\| {SIZE} \| (\d+) \| {SIZE} \| (\d+) \|$")
    assert len(rows) == 6
    most = Media().low_tokens
    for width, height, tokens, *told_size, fewer in rows:
        assert INSTRUCT.num_tokens(width, height) == tokens
        smaller = shrunk(INSTRUCT, (width, height), most) if tokens > most else (width, height)
        assert list(smaller) == told_size
        assert INSTRUCT.num_tokens(*smaller) == fewer


def test_the_examples_of_fit_are_computed() -> None:
    ((steps, width, height, tokens),) = numbers(rf"^\| `downscale` \| (\d+)/256 \| five of {SIZE} \| (\d+) \|$")
    plan = planned("downscale")
    assert (plan.steps, plan.sizes, plan.total) == (steps, ((width, height),) * 5, tokens)
    ((next_steps, each, together),) = numbers(r"(\d+)/256 would give each picture (\d+) tokens, which is ([\d,]+)\.")
    assert next_steps == steps + 1
    assert INSTRUCT.num_tokens(*shrunk(INSTRUCT, (600, 400), 330 * next_steps // STEPS)) == each
    assert together == 5 * each > 1000
    ((width, height, tokens),) = numbers(rf"^\| `elide_oldest` \| \| three of {SIZE} \| (\d+) \|$")
    plan = planned("elide_oldest")
    assert (plan.sizes, plan.total) == ((None, None, *[(width, height)] * 3), tokens)


def test_every_value_and_field_is_documented() -> None:
    fields = Told("error", [1], [1], 1, 1, STEPS).whole()
    names = [*FITS, MARKER, told.HEADER, *fields, "low", "high", "auto", "original"]
    assert [name for name in names if f"`{name}`" not in DOC] == []
