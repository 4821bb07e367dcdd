"""The frames of one video, as pictures with their times. Knows which, how large and at what cost; decodes nothing."""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, get_args

import msgspec

from kimi_serve.gateway.expansion.child.wire import Json
from kimi_serve.gateway.expansion.room import Room
from kimi_serve.gateway.expansion.workers import Limits, Worker
from kimi_serve.gateway.media import data_urls
from kimi_serve.gateway.prompt_cost import Meter
from kimi_serve.gateway.settings import Videos
from kimi_serve.protocol.errors import ApiError, short
from kimi_serve.protocol.files import VIDEO_OPTIONS, FilePart, Image

Sampling = Literal["uniform", "scenes"]
READER: Final = "video"
SAMPLINGS: Final[tuple[Sampling, ...]] = get_args(Sampling)
_NEAR: Final = 0.25  # of the time that a frame stands for
MOST_INDEXED: Final = 500_000  # frames of a file: more than two hours at 60 a second


class _Opened(msgspec.Struct):
    width: int
    height: int
    duration: float
    times: list[float]
    scenes: list[int]  # the frames with which they begin
    anchors: list[int]  # the frames that are no B-frames, in order


class _Frame(msgspec.Struct):
    time: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A part's own fields."""

    fps: float | None
    frames: int | None
    timestamps: bool
    sampling: Sampling = "uniform"


def read_options(file: FilePart, rules: Videos) -> Asked:
    options = file.options(VIDEO_OPTIONS)
    fps, frames, timestamps = options.get("fps"), options.get("frames"), options.get("timestamps", True)
    if fps is not None and (not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= 1000):
        raise _wrong(file, "fps", fps, "a number above 0, at most 1000")
    if frames is not None and (type(frames) is not int or not 1 <= frames <= rules.max_frames):
        raise _wrong(file, "frames", frames, f"an integer from 1 to {rules.max_frames}")
    if fps is not None and frames is not None:
        raise _wrong(file, "frames", frames, "either fps or frames")
    if not isinstance(timestamps, bool):
        raise _wrong(file, "timestamps", timestamps, "true or false")
    given = options.get("sampling", "uniform")
    sampling = next((one for one in SAMPLINGS if one == given), None)
    if sampling is None:
        raise _wrong(file, "sampling", given, f"one of {', '.join(SAMPLINGS)}")
    return Asked(fps, frames, timestamps, sampling)


def limits(rules: Videos, memory_bytes: int, most_bytes: int) -> Limits:
    return Limits(memory_bytes, rules.cpu_s, rules.timeout_s, most_bytes)


def choose(
    times: Sequence[float],
    duration: float,
    asked: Asked,
    rules: Videos,
    scenes: Sequence[int] = (0,),
    anchors: Sequence[int] = (),
) -> list[int]:
    """Which frames: those that are on the screen at moments evenly apart. Each once, so a short video has fewer.

    By fps from the beginning; where these are too many, or a number of frames is asked for, in the middle of as many
    equal parts of the video; by scenes as many, in the middle of equal parts of each. In the place of a B-frame the
    next that is none stands, where it follows soon: it is reached in less than half the time.
    """
    fps = asked.fps or rules.fps
    count = asked.frames
    if count is None and math.ceil(duration * fps) > rules.max_frames:
        count = rules.max_frames
    if asked.sampling == "scenes":
        begins = [times[number] for number in scenes]
        parts = _in_scenes([*begins, duration], count or max(1, math.ceil(duration * fps)))
    elif count is None:
        parts = [(number / fps, 1 / fps) for number in range(max(1, math.ceil(duration * fps)))]
    else:
        parts = [((number + 0.5) * duration / count, duration / count) for number in range(count)]
    lasting: dict[int, float] = {}
    for moment, span in parts:
        lasting.setdefault(max(0, bisect.bisect_right(times, moment + 1e-6) - 1), span)
    return _without_b_frames(lasting, times, anchors)


def _without_b_frames(lasting: Mapping[int, float], times: Sequence[float], anchors: Sequence[int]) -> list[int]:
    """As many frames in order. `lasting`: for how long each stands."""
    chosen = []
    for number, behind in pairwise([*sorted(lasting), len(times)]):
        at = bisect.bisect_left(anchors, number)
        anchor = anchors[at] if at < len(anchors) else behind
        is_near = anchor < behind and times[anchor] - times[number] <= lasting[number] * _NEAR
        chosen.append(anchor if is_near else number)
    return chosen


def _in_scenes(edges: Sequence[float], count: int) -> list[tuple[float, float]]:
    """So many moments between edges in order: one of each scene, or of the longest where there are more, and the
    others where a frame would stand for the longest time. With each the time that its frame stands for.
    """
    spans = list(pairwise(edges))
    shares = [0] * len(spans)
    for number in sorted(range(len(spans)), key=lambda one: spans[one][0] - spans[one][1])[:count]:
        shares[number] = 1
    lasting = [((begin - end) / 2, number) for number, (begin, end) in enumerate(spans) if shares[number]]
    heapq.heapify(lasting)  # by the time that a frame would stand for with one more, the longest first
    for _ in range(count - sum(shares)):
        _, number = lasting[0]
        shares[number] += 1
        begin, end = spans[number]
        heapq.heapreplace(lasting, ((begin - end) / (shares[number] + 1), number))
    return [
        (begin + (part + 0.5) * (end - begin) / share, (end - begin) / share)
        for (begin, end), share in zip(spans, shares, strict=True)
        for part in range(share)
    ]


def stamp(seconds: float, *, is_fine: bool) -> str:
    """0:12 or 1:02:03; where two frames would read the same 0:12.48."""
    hundredths = int(seconds * 100 + 1e-6)
    whole, rest = divmod(hundredths, 100)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    shown = f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
    return f"{shown}.{rest:02}" if is_fine else shown


async def show(
    worker: Worker, limits: Limits, video: tuple[str, bytes], asked: Asked, rules: Videos, meter: Meter, room: Room
) -> AsyncIterator[str | Image]:
    """Before each frame its time, unless nobody wants it. `video`: the name of its format, and the bytes."""
    wanted: Json = {
        "format": video[0],
        "most_pixels": rules.max_pixels,
        "most_seconds": rules.max_duration_s,
        "most_frames": MOST_INDEXED,
        "scenes": asked.sampling == "scenes",
    }
    told = await worker.open(limits, wanted, video[1], _Opened)
    chosen = choose(told.times, told.duration, asked, rules, told.scenes, told.anchors)
    size = meter.geometry.largest(told.width, told.height, tokens=rules.frame_tokens, scale=1.0)
    room.take([size] * len(chosen), "frames", "choose fewer by `frames` or `fps`")
    times = [told.times[number] for number in chosen]
    is_fine = any(int(before) == int(behind) for before, behind in pairwise(times))
    plan: Json = {"frames": chosen, "width": size[0], "height": size[1]}
    async for frame, shown in worker.show(plan, _Frame):
        if asked.timestamps and rules.timestamp:
            yield rules.timestamp.replace("{time}", stamp(frame.time, is_fine=is_fine))
        yield Image(data_urls.encode(shown, "image/jpeg"))


def _wrong(file: FilePart, name: str, value: object, expected: str) -> ApiError:
    where = f"{file.where}.{name}"
    return ApiError("invalid_value", f"{where}: {short(value)} is not supported; expected {expected}", param=where)
