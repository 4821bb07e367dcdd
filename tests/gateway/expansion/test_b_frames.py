"""B-frames are left out on the way where that changes no frame, and only there."""

from __future__ import annotations

import io
from functools import cache
from itertools import pairwise

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.gateway.expansion.child import video as child
from kimi_serve.gateway.expansion.videos import Asked, choose
from kimi_serve.gateway.settings import Videos
from tests.gateway.conftest import Start
from tests.gateway.expansion.films import film, moving
from tests.gateway.expansion.test_videos import ask, seen

GOP = "25"
ASKED = {"most_pixels": 10**7, "most_seconds": 100, "most_frames": 1000}
X265 = f"log-level=none:keyint={GOP}"
# Codec, container, its options, and whether B-frames may be left out.
STREAMS: dict[str, tuple[str, str, dict[str, str], bool]] = {
    "one reference": ("libx264", "mp4", {"preset": "veryfast", "g": GOP}, True),
    "Matroska": ("libx264", "matroska", {"preset": "veryfast", "g": GOP}, True),
    "strict pyramid": ("libx264", "mp4", {"b-pyramid": "strict", "g": GOP}, True),
    "no pyramid": ("libx264", "mp4", {"b-pyramid": "none", "g": GOP}, True),
    "open GOP": ("libx264", "mp4", {"preset": "veryfast", "g": GOP, "x264-params": "open-gop=1"}, True),
    "P-frames that refer to B-frames": ("libx264", "mp4", {"g": GOP, "bf": "8", "refs": "4"}, False),
    "those in an open GOP": ("libx264", "mp4", {"g": GOP, "bf": "8", "refs": "4", "x264-params": "open-gop=1"}, False),
    "intra refresh": ("libx264", "mp4", {"preset": "veryfast", "g": GOP, "intra-refresh": "1"}, True),
    "HEVC, where all are called B": ("libx265", "mp4", {"preset": "ultrafast", "x265-params": X265}, False),
    "HEVC, open GOP": ("libx265", "mp4", {"preset": "ultrafast", "x265-params": X265 + ":open-gop=1"}, False),
    "VP9": ("libvpx-vp9", "webm", {"g": GOP, "cpu-used": "8", "deadline": "realtime"}, False),
    "AV1": ("libsvtav1", "mp4", {"g": GOP, "preset": "11", "svtav1-params": "lp=1"}, False),
    "MPEG-4": ("mpeg4", "mp4", {"g": GOP, "bf": "2"}, True),
}


@cache
def stream(name: str) -> bytes:
    codec, container, options, _ = STREAMS[name]
    return moving(codec, container, options)


def opened(name: str) -> tuple[child.Video, dict[str, object]]:
    reader = "mov" if STREAMS[name][1] == "mp4" else "matroska"
    return child.open(stream(name), {"format": reader, **ASKED})


def bits(frame: av.VideoFrame) -> bytes:
    return child._picture(frame, frame.width, frame.height).tobytes()


@cache
def straight(name: str) -> dict[int, bytes]:
    """Every frame by its time, as a decoder gives them that leaves nothing out."""
    with av.open(io.BytesIO(stream(name))) as container:
        return {frame.pts or 0: bits(frame) for frame in container.decode(video=0)}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("which", ["anchors", "all", "some"])
def test_a_frame_has_the_bits_that_decoding_everything_gives(name: str, which: str) -> None:
    video, _ = opened(name)
    wanted = {"anchors": video.anchors, "all": video.ticks, "some": video.anchors[1::5]}[which]
    found = {frame.pts: bits(frame) for frame in child._decoded(video, wanted)}
    assert list(found) == wanted
    assert [tick for tick in wanted if found[tick] != straight(name)[tick]] == []


@pytest.mark.parametrize("name", STREAMS)
def test_b_frames_are_left_out_where_the_others_do_without_them(name: str) -> None:
    video, told = opened(name)
    has_b_frames = len(video.anchors) < len(video.ticks)
    is_lean = has_b_frames and child._needs_no_b_frames(video, child._runs(video.keys, video.anchors[1::5]))
    assert is_lean == STREAMS[name][3]
    assert told["anchors"] == [video.ticks.index(tick) for tick in video.anchors]


def test_a_stream_of_which_a_later_part_needs_them_is_decoded_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """HEVC's own loses whole frames: what a trial has not seen is noticed when a frame does not come."""
    monkeypatch.setattr(child, "_needs_no_b_frames", lambda *_: True)
    name = "HEVC, where all are called B"
    video, _ = opened(name)
    found = {frame.pts: bits(frame) for frame in child._decoded(video, video.anchors)}
    assert found == {tick: straight(name)[tick] for tick in video.anchors}


def test_a_trial_of_few_runs_would_cost_more_than_it_saves() -> None:
    video, _ = opened("one reference")
    runs = child._runs(video.keys, video.anchors[1::5])
    assert child._needs_no_b_frames(video, runs)
    assert not child._needs_no_b_frames(video, runs[:3])


def test_in_the_place_of_a_b_frame_the_next_that_is_none_is_shown_with_its_own_time(start: Start) -> None:
    front = start()
    data = film()
    _, told = child.open(data, {"format": "mov", **ASKED})
    assert ask(front, data).status_code == 200
    numbers = [number for _, number in seen(front)]
    for at, number in zip((0, 10, 20, 30, 40), numbers, strict=True):
        near = [anchor for anchor in told["anchors"] if at <= anchor <= at + 2]
        assert number == (near[0] if near else at)
    assert numbers != [0, 10, 20, 30, 40]
    assert [text for text, _ in seen(front)] == ["[0:00]", "[0:01]", "[0:02]", "[0:03]", "[0:04]"]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=120), st.sets(st.integers(0, 119)), st.integers(1, 40))
def test_as_many_frames_are_shown_and_none_is_far_from_its_moment(
    gaps: list[int], anchors: set[int], count: int
) -> None:
    times = [sum(gaps[:number]) / 25 for number in range(len(gaps))]
    duration, rules, asked = sum(gaps) / 25, Videos(), Asked(None, count, True)
    found = sorted({0, *(anchor for anchor in anchors if anchor < len(times))})
    plain, near = choose(times, duration, asked, rules), choose(times, duration, asked, rules, (0,), found)
    assert len(near) == len(plain)
    assert all(before < behind for before, behind in pairwise(near))
    for one, other in zip(plain, near, strict=True):
        assert one == other or (other in found and 0 < times[other] - times[one] <= duration / count / 4 + 1e-9)
