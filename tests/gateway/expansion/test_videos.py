"""Videos in conversations reach the engine as frames with their times, over real sockets."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from kimi_serve.gateway.expansion import videos
from kimi_serve.gateway.expansion.child import video as child
from kimi_serve.gateway.expansion.kinds import video_format
from kimi_serve.gateway.expansion.room import Room
from kimi_serve.gateway.expansion.videos import Asked, choose, stamp
from kimi_serve.gateway.expansion.workers import Workers
from kimi_serve.gateway.prompt_cost import Meter
from kimi_serve.gateway.settings import Videos
from tests.gateway.conftest import Front, Start
from tests.gateway.expansion.corpus import as_url, mutated, pdf
from tests.gateway.expansion.films import film, number_of
from tests.gateway.expansion.outcomes import COPIES, TIMEOUT, outcomes, processes
from tests.gateway.expansion.test_documents import sent, shown
from tests.gateway.test_gateway import png
from tests.gateway.test_metrics import sample

Json = dict[str, object]


def ask(front: Front, data: bytes, **options: object) -> httpx.Response:
    url = as_url(data, "video/mp4")
    return front.chat([{"type": "video_url", "video_url": {"url": url}, **options}], max_tokens=4)


def seen(front: Front) -> list[tuple[str, int]]:
    """Each frame's time and number, as the engine gets them."""
    parts = sent(front)
    texts = [str(part["text"]) for part in parts[::2]]
    return [(text, number_of(np.asarray(shown(part)))) for text, part in zip(texts, parts[1::2], strict=True)]


@pytest.mark.parametrize("container", ["mp4", "mov", "webm", "gif"])
def test_a_video_reaches_the_engine_as_frames_with_their_times(start: Start, container: str) -> None:
    front = start()
    answer = ask(front, film(container, b_frames=False))
    assert answer.status_code == 200, answer.text
    assert seen(front) == [("[0:00]", 0), ("[0:01]", 10), ("[0:02]", 20), ("[0:03]", 30), ("[0:04]", 40)]
    assert sample(front, "kimi_serve_expanded_files_total", kind="video") == 1
    assert sample(front, "kimi_serve_expanded_images_total", kind="video") == 5
    front.assert_idle()


def test_a_number_of_frames_is_spread_over_the_video(start: Start) -> None:
    front = start()
    assert ask(front, film(), frames=4).status_code == 200
    assert seen(front) == [("[0:00]", 6), ("[0:01]", 18), ("[0:03]", 31), ("[0:04]", 43)]


def test_frames_less_than_a_second_apart_have_hundredths(start: Start) -> None:
    front = start()
    assert ask(front, film(frames=10), fps=5).status_code == 200
    assert seen(front) == [("[0:00.00]", 0), ("[0:00.20]", 2), ("[0:00.40]", 4), ("[0:00.60]", 6), ("[0:00.80]", 8)]


def test_a_video_of_uneven_frames_has_their_own_times(start: Start) -> None:
    front = start()
    times = [0.0, 0.9, 1.1, 4.0, 9.5]
    assert ask(front, film("mp4", 5, times=times)).status_code == 200
    assert seen(front)[:4] == [("[0:00.00]", 0), ("[0:00.90]", 1), ("[0:01.10]", 2), ("[0:04.00]", 3)]


def test_times_are_left_out_where_a_part_or_the_operator_says_so(start: Start) -> None:
    for front, options in ((start(), {"timestamps": False}), (start(videos={"timestamp": ""}), {})):
        assert ask(front, film(), **options).status_code == 200
        assert {str(part["type"]) for part in sent(front)} == {"image_url"}


def test_more_frames_than_the_most_are_spread_over_the_whole_video(start: Start) -> None:
    front = start(videos={"max_frames": 3, "timestamp": "at {time}:"})
    assert ask(front, film(b_frames=False)).status_code == 200
    assert seen(front) == [("at 0:00:", 8), ("at 0:02:", 25), ("at 0:04:", 41)]


def test_each_frame_is_as_large_as_its_tokens_allow_and_never_larger_than_it_was(start: Start) -> None:
    front = start(videos={"frame_tokens": 16})
    assert ask(front, film(size=(640, 360)), frames=1).status_code == 200
    assert ask(front, film(size=(64, 32)), frames=1).status_code == 200
    sizes = [shown(parts[1]).size for parts in (_of(front, -2), _of(front, -1))]
    assert front.gateway.meter.geometry.num_tokens(*sizes[0]) in range(12, 17)
    assert sizes[0][0] / sizes[0][1] == pytest.approx(16 / 9, rel=0.03)
    assert sizes[1] == (64, 32)


def _of(front: Front, number: int) -> list[Json]:
    content: list[Json] = json.loads(front.engines[0].record.requests[number].body)["messages"][0]["content"]
    return content


@pytest.mark.parametrize(("turned", "size"), [(90, (64, 96)), (180, (96, 64)), (-90, (64, 96))])
def test_a_video_that_was_held_upright_is_shown_upright(start: Start, turned: int, size: tuple[int, int]) -> None:
    front = start()
    assert ask(front, film(turned=turned), frames=1).status_code == 200
    assert shown(sent(front)[1]).size == size


def test_a_file_that_is_a_video_is_one_and_a_gif_a_picture(start: Start) -> None:
    front = start()
    files = [{"type": "file", "file": {"file_data": as_url(film(kind))}} for kind in ("mp4", "gif")]
    assert front.chat(files, max_tokens=4).status_code == 200
    assert [part["type"] for part in sent(front)] == ["text", "image_url"] * 5 + ["image_url"]


REFUSED: dict[str, tuple[bytes, Json, str, str]] = {
    "damaged": (film()[:200], {}, "invalid_video", "is damaged"),
    "a picture": (b"\x89PNG\r\n\x1a\n", {}, "unsupported_media_type", "no video"),
    "text": (b"#EXTM3U\nfile:///etc/passwd", {}, "unsupported_media_type", "no video"),
    "no rate": (film(), {"fps": 0}, "invalid_value", "content[0].fps: 0"),
    "rate as text": (film(), {"fps": "1"}, "invalid_value", "content[0].fps: '1'"),
    "too many frames": (film(), {"frames": 257}, "invalid_value", "an integer from 1 to 256"),
    "both": (film(), {"frames": 2, "fps": 1}, "invalid_value", "either fps or frames"),
    "timestamps as text": (film(), {"timestamps": "no"}, "invalid_value", "content[0].timestamps: 'no'"),
}


@pytest.mark.parametrize(("data", "options", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_a_video_that_cannot_be_shown_is_refused_with_what_to_do(
    idle: Front, data: bytes, options: Json, code: str, said: str
) -> None:
    answer = ask(idle, data, **options)
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (400, code), answer.text
    assert answer.json()["error"]["message"].startswith("messages[0].content[0]")
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"videos": {"max_bytes": 500}}, "video_too_large", "limit of 500"),
        ({"videos": {"max_pixels": 1000}}, "video_too_large", "96x64 pixels a frame"),
        ({"videos": {"max_duration_s": 2.0}}, "video_too_large", "lasts 5 seconds"),
        ({"dials": {"max_model_len": 30}}, "context_length_exceeded", "choose fewer by `frames`"),
        ({"media": {"max_images": 2}}, "too_many_images", "may hold 2 more images"),
        ({"media": {"allow_remote": True}, "workers": {"processes": 0}}, "unsupported_media_type", "not taken here"),
    ],
)
def test_every_limit_of_videos_is_kept(start: Start, settings: Json, code: str, said: str) -> None:
    front = start(**settings)
    answer = ask(front, film())
    assert (answer.status_code, answer.headers["x-kimi-serve-reason"]) == (400, code), answer.text
    assert said in answer.json()["error"]["message"]
    assert front.engines[0].record.count == 0
    front.assert_idle()


def test_a_frame_is_reached_by_a_jump_and_is_the_same_as_without() -> None:
    data = film(frames=60, gop=10)
    asked = {"format": "mov", "most_pixels": 10**7, "most_seconds": 100, "most_frames": 1000}
    opened, told = child.open(data, asked)
    assert len(opened.keys) >= 6
    wanted = [3, 25, 27, 58]
    assert [len(targets) for _, targets in child._runs(opened.keys, [opened.ticks[one] for one in wanted])] == [1, 2, 1]
    plan = {"frames": wanted, "width": 96, "height": 64}
    jumped = list(child.show(opened, plan))
    assert [head["time"] for head, _ in jumped] == [told["times"][one] for one in wanted] == [0.3, 2.5, 2.7, 5.8]
    everything = list(child.show(opened, {**plan, "frames": list(range(60))}))
    assert [everything[one][1] for one in wanted] == [shown for _, shown in jumped]


@pytest.mark.parametrize(
    ("seconds", "is_fine", "shown"),
    [
        (0, False, "0:00"),
        (12.9, False, "0:12"),
        (3723, False, "1:02:03"),
        (12.48, True, "0:12.48"),
        (59.999, True, "0:59.99"),
    ],
)
def test_times_are_shown_as_on_a_clock(seconds: float, is_fine: bool, shown: str) -> None:
    assert stamp(seconds, is_fine=is_fine) == shown


def test_frames_are_those_on_the_screen_at_even_moments() -> None:
    times = [number / 25 for number in range(250)]
    rules = Videos()
    assert choose(times, 10.0, Asked(1.0, None, True), rules) == list(range(0, 250, 25))
    assert choose(times, 10.0, Asked(None, 2, True), rules) == [62, 187]
    assert choose([0.0], 0.0, Asked(None, None, True), rules) == [0]
    assert len(choose(times, 10.0, Asked(1000.0, None, True), rules)) == 250


@pytest.mark.timeout(TIMEOUT)
def test_a_mutated_video_is_shown_or_refused_and_nothing_hangs(checkpoint: Path) -> None:
    meter, before = Meter.from_directory(checkpoint), set(processes())
    sound = [film(kind, 30) for kind in ("mp4", "webm", "gif")]
    rules = Videos(timeout_s=30.0, cpu_s=10)
    limits = videos.limits(rules, 2**30, 2**26)

    async def read(workers: Workers, number: int) -> int:
        data = mutated(sound[number % 3], number)
        name = video_format(data) or "mov"
        async with workers.over(videos.READER, limits) as worker:
            parts = videos.show(worker, limits, (name, data), Asked(None, 4, True), rules, meter, Room(meter, 512))
            return len([part async for part in parts])

    seen = outcomes(read)
    assert seen["shown"] > COPIES // 5
    assert seen["invalid"] > 0
    assert seen["nothing"] == seen["crash"] == 0
    assert set(processes()) <= before  # another gateway of this module has one that waits


def test_what_is_no_video_is_not_taken_for_one() -> None:
    assert video_format(pdf(1)) is None
    assert video_format(png().encode()) is None
