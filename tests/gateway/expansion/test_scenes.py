"""`sampling: scenes`: every scene of a video is shown, as long as there are frames for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.gateway.expansion.videos import Asked, choose
from kimi_serve.gateway.settings import Videos
from tests.gateway.conftest import Front, Start
from tests.gateway.expansion.corpus import as_url
from tests.gateway.expansion.films import cut
from tests.gateway.expansion.test_documents import sent


def times(front: Front, lengths: list[int], **options: object) -> list[str]:
    """What stands before the frames at the engine."""
    part = {"type": "video_url", "video_url": {"url": as_url(cut(lengths), "video/mp4")}, **options}
    answer = front.chat([part], max_tokens=4)
    assert answer.status_code == 200, answer.text
    return [str(part["text"]) for part in sent(front)[::2]]


def test_a_short_scene_is_shown_beside_long_ones(start: Start) -> None:
    front = start()
    lengths = [90, 6, 104]  # twenty seconds, of which the second scene has 0.6
    assert times(front, lengths, frames=3, sampling="scenes") == ["[0:04]", "[0:09]", "[0:14]"]
    assert times(front, lengths, frames=3) == ["[0:03]", "[0:10]", "[0:16]"]


def test_a_scene_that_is_long_has_more_frames(start: Start) -> None:
    assert times(start(), [90, 6, 104], frames=5, sampling="scenes") == [
        "[0:02]",
        "[0:06]",
        "[0:09]",
        "[0:12]",
        "[0:17]",
    ]


def test_a_video_of_one_scene_is_shown_evenly(start: Start) -> None:
    front = start()
    assert times(front, [100], frames=4, sampling="scenes") == times(front, [100], frames=4)


@pytest.mark.parametrize("given", ["cuts", 1, None, ["scenes"]])
def test_another_word_is_refused_by_its_place(start: Start, given: object) -> None:
    part = {"type": "video_url", "video_url": {"url": as_url(cut([10]), "video/mp4")}, "sampling": given}
    answer = start().chat([part], max_tokens=4)
    if given is None:  # as if it were not there
        assert answer.status_code == 200
        return
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].content[0].sampling")
    assert "expected one of uniform, scenes" in answer.json()["error"]["message"]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 60))
def test_no_frame_twice_no_more_than_asked_and_the_longest_scenes_first(lengths: list[int], count: int) -> None:
    edges = [sum(lengths[:number]) for number in range(len(lengths) + 1)]
    at = [number / 25 for number in range(edges[-1])]
    rules = Videos()
    chosen = choose(at, edges[-1] / 25, Asked(None, count, True, "scenes"), rules, edges[:-1])
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= count
    shown = [any(begin <= number < end for number in chosen) for begin, end in pairwise(edges)]
    assert sum(shown) == min(count, len(lengths))
    missed = [length for length, is_shown in zip(lengths, shown, strict=True) if not is_shown]
    kept = [length for length, is_shown in zip(lengths, shown, strict=True) if is_shown]
    assert not missed or max(missed) <= min(kept)
