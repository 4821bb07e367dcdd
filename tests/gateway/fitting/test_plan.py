"""The plan for a request's pictures, over drawn counts and sizes: it fits or refuses, changes nothing that fits."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kimi_serve.errors import ImageError
from kimi_serve.gateway.fitting.plan import STEPS, Bounds, Picture, Plan, Size, decide, shrunk
from kimi_serve.inputs.geometry import Geometry

INSTRUCT = Geometry(patch_size=14, merge_height=2, merge_width=2, in_token_limit=4096)
GEOMETRIES = st.sampled_from(
    [INSTRUCT, replace(INSTRUCT, in_token_limit=16384), replace(INSTRUCT, in_token_limit=1024)]
)
SIZES = st.tuples(st.integers(1, 6000), st.integers(1, 6000))
MARKER = 3


def count(geometry: Geometry, size: Size) -> int:
    try:
        return geometry.num_tokens(*size)
    except ImageError:
        assume(False)
        raise


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Geometry, list[Picture]]:
    geometry = draw(GEOMETRIES)
    sizes = draw(st.lists(SIZES, max_size=12))
    most = st.none() | st.integers(1, 400)
    return geometry, [Picture(size, count(geometry, size), draw(most), draw(st.booleans())) for size in sizes]


def added(text: int) -> Callable[[frozenset[int]], int]:
    return lambda gone: text + MARKER * len(gone)


def plan(fit: str, case: tuple[Geometry, list[Picture]], room: int, text: int = 50, floor: int = 64) -> Plan:
    geometry, pictures = case
    return decide(fit, pictures, geometry, Bounds(room, floor, MARKER), added(text))  # type: ignore[arg-type]


@given(GEOMETRIES, SIZES, st.integers(1, 3000))
def test_a_picture_over_its_cap_becomes_the_largest_of_its_shape_that_is_not(
    geometry: Geometry, size: Size, most: int
) -> None:
    assume(count(geometry, size) > most)
    found = shrunk(geometry, size, most)
    assert geometry.num_tokens(*found) <= most
    assert geometry.resized(*found) == found  # the engine scales it no further
    longer, wide = max(size), size[0] >= size[1]
    assert found[0 if wide else 1] == max(found)
    shorter = max(1, (2 * min(size) * max(found) + longer) // (2 * longer))
    assert min(found) == shorter  # its shape, to half a pixel
    one_more = max(found) + 1
    sides = (one_more, max(1, (2 * min(size) * one_more + longer) // (2 * longer)))
    bigger = sides if wide else sides[::-1]
    assert geometry.resized(*bigger) != bigger or geometry.num_tokens(*bigger) > most


@given(GEOMETRIES, SIZES, st.integers(1, 2000), st.integers(1, 2000))
def test_a_larger_cap_never_gives_a_smaller_picture(geometry: Geometry, size: Size, one: int, two: int) -> None:
    count(geometry, size)
    small, large = (shrunk(geometry, size, most) for most in sorted((one, two)))
    assert small[0] <= large[0]
    assert small[1] <= large[1]
    assert geometry.num_tokens(*small) <= geometry.num_tokens(*large)


@given(drawn(), st.sampled_from(["error", "downscale", "elide_oldest"]), st.integers(0, 3000))
def test_what_fits_already_is_left_as_its_details_say(
    case: tuple[Geometry, list[Picture]], fit: str, spare: int
) -> None:
    geometry, pictures = case
    alone = plan("error", case, 0)
    found = plan(fit, case, alone.total + spare)
    assert found == replace(alone, fits=True)
    for picture, size, tokens in zip(pictures, found.sizes, found.tokens, strict=True):
        assert size is not None
        assert tokens == geometry.num_tokens(*size)
        if picture.most is None or picture.tokens <= picture.most:
            assert size == picture.size
        else:
            assert tokens <= picture.most


@settings(deadline=None)
@given(drawn(), st.sampled_from(["downscale", "elide_oldest"]), st.integers(-100, 20_000))
def test_a_plan_fits_or_says_that_nothing_does(case: tuple[Geometry, list[Picture]], fit: str, room: int) -> None:
    geometry, pictures = case
    found = plan(fit, case, room)
    assert found.fits == (found.total <= room)
    for size, tokens in zip(found.sizes, found.tokens, strict=True):
        assert tokens == (0 if size is None else geometry.num_tokens(*size))
    start = plan("error", case, room)
    if fit == "downscale":
        assert not found.left_out
        for tokens, before in zip(found.tokens, start.tokens, strict=True):
            assert tokens <= before
        if not found.fits:  # all are at the floor, or under it by their shape
            assert found.steps == 0
            assert all(tokens <= 64 for tokens in found.tokens)
    else:
        assert all(pictures[index].may_go for index in found.left_out)
        assert found.text_tokens == 50 + MARKER * len(found.left_out)
        if not found.fits:
            stays = [i for i, one in enumerate(pictures) if i not in found.left_out]
            assert all(not pictures[i].may_go or start.tokens[i] <= MARKER for i in stays)


@settings(deadline=None)
@given(drawn(), st.integers(0, 20_000))
def test_downscale_takes_the_largest_factor_that_fits_for_all_alike(
    case: tuple[Geometry, list[Picture]], room: int
) -> None:
    geometry, pictures = case
    start, found = plan("error", case, room), plan("downscale", case, room)
    assume(found.fits and not start.fits)

    def at(steps: int) -> list[int]:
        tokens = []
        for picture, before in zip(pictures, start.tokens, strict=True):
            most = max(min(before, 64), before * steps // STEPS)
            fits = picture.tokens <= most
            tokens.append(picture.tokens if fits else geometry.num_tokens(*shrunk(geometry, picture.size, most)))
        return tokens

    assert list(found.tokens) == at(found.steps)
    assert 50 + sum(at(found.steps + 1)) > room


@settings(deadline=None)
@given(drawn(), st.integers(0, 20_000))
def test_elision_takes_the_fewest_and_the_oldest(case: tuple[Geometry, list[Picture]], room: int) -> None:
    _, pictures = case
    start, found = plan("error", case, room), plan("elide_oldest", case, room)
    going = [i for i, one in enumerate(pictures) if one.may_go and start.tokens[i] > MARKER]
    assert sorted(found.left_out) == going[: len(found.left_out)]
    if found.fits and found.left_out:
        newest = max(found.left_out)
        assert found.total + start.tokens[newest] - MARKER > room


@settings(deadline=None)
@given(drawn(), st.integers(0, 20_000), st.integers(0, 5_000))
def test_more_room_never_takes_more_away(case: tuple[Geometry, list[Picture]], room: int, more: int) -> None:
    tight, wide = plan("downscale", case, room), plan("downscale", case, room + more)
    assert all(a <= b for a, b in zip(tight.tokens, wide.tokens, strict=True))
    assert wide.fits or not tight.fits
    tight, wide = plan("elide_oldest", case, room), plan("elide_oldest", case, room + more)
    assert wide.left_out <= tight.left_out
    assert wide.fits or not tight.fits


@settings(deadline=None)
@given(drawn(), st.integers(0, 20_000), st.lists(st.integers(-3, 4), min_size=13, max_size=13))
def test_a_text_whose_tokens_merge_is_counted_and_not_guessed(
    case: tuple[Geometry, list[Picture]], room: int, noise: list[int]
) -> None:
    """Byte pairs merge across a marker's ends, so what it costs is not known before it is there."""
    geometry, pictures = case

    def text(gone: frozenset[int]) -> int:
        return 50 + sum(MARKER + noise[index] for index in gone)

    found = decide("elide_oldest", pictures, geometry, Bounds(room, 64, MARKER), text)
    assert found.text_tokens == text(found.left_out)
    assert found.fits == (found.total <= room)


@pytest.mark.parametrize(("count", "looks"), [(1, 3), (512, 4)])
def test_a_history_is_counted_a_few_times_only(count: int, looks: int) -> None:
    """Text and pictures of 100,000 tokens take long to count."""
    seen = []

    def text(gone: frozenset[int]) -> int:
        seen.append(len(gone))
        return 1000 + MARKER * len(gone)

    pictures = [Picture((448, 448), 256, None, True)] * count
    found = decide(
        "elide_oldest", pictures, INSTRUCT, Bounds(1000 + 256 * (count - count // 2) - 200, 64, MARKER), text
    )
    assert found.fits
    assert len(seen) <= looks
