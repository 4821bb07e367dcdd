"""Frames of a video, by FFmpeg. Knows times, sizes and rotation; the gateway says which frames, and how large.

The times of all frames are read from the packets, which decodes nothing. Then each wanted frame is reached from the
keyframe before it, or from where the decoder already is. On the way frames that no other depends on are left out, and
all B-frames where a trial shows that no other frame of the stream depends on one.
"""

from __future__ import annotations

import bisect
import io
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from itertools import chain
from typing import Any, Final, Literal

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageChops, ImageStat

from kimi_serve.gateway.expansion.child.refusal import INVALID, TOO_LARGE, RefusalError

Json = dict[str, Any]
Skip = Literal["NONREF", "BIDIR"]  # FFmpeg's words: frames that no other depends on, or all B-frames
Run = tuple[int, list[int]]  # a keyframe, and the wanted frames that are decoded from it in one go

JPEG_QUALITY: Final = 90
_LONG_PIXEL: Final = 10  # times as long as wide: beyond, what a file says of its pixels' shape is damage
_GLANCE: Final = (32, 18)  # pixels
_CHANGE: Final = 16  # of 255, in the mean: another scene
_TRIED_TOGETHER: Final = 16  # runs, of which one is decoded twice
_WORTH_A_TRIAL: Final = 4  # runs
_COMPARED: Final = 16  # frames of a trial
_TURNS: Final = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True)
class Video:
    data: bytes
    format: str  # FFmpeg's name of its demuxer
    most_pixels: int
    base: Fraction  # seconds of one tick
    ticks: list[int]  # when each frame is shown, in order
    keys: list[int]  # those of them from which decoding can begin
    anchors: list[int]  # those of them that are shown after all that are decoded before: no B-frames
    sizes: list[int]  # bytes of each frame
    turned: int  # degrees, counterclockwise


def open(data: bytes, asked: Json) -> tuple[Video, Json]:
    """`asked`: the demuxer and the limits. Told: the upright size, the duration, when each frame is shown, and which
    are cheap to reach.

    Where `scenes` is asked for, also the frames with which a scene begins.
    """
    container, stream = _opened(data, asked["format"])
    first = _first(container, stream, asked["most_pixels"])
    container.close()
    turned = int(first.rotation) % 360
    container, stream = _opened(data, asked["format"])
    assert stream.time_base is not None
    ticks, keys, anchors, sizes = _indexed(container, stream, asked["most_frames"])
    container.close()
    keys = ticks[:1] if asked["format"] == "gif" else keys  # its frames are drawn over each other
    base = stream.time_base
    video = Video(data, asked["format"], asked["most_pixels"], base, ticks, keys, anchors, sizes, turned)
    duration = _duration(video)
    if duration > asked["most_seconds"]:
        why = f"lasts {duration:.0f} seconds, and {asked['most_seconds']:g} are the most: cut it"
        raise RefusalError(TOO_LARGE, why)
    width, height = _upright(stream, first, turned)
    times = [_seconds(video, tick) for tick in ticks]
    scenes = _scenes(video) if asked.get("scenes") else [0]
    told = {"width": width, "height": height, "duration": duration, "times": times, "scenes": scenes}
    return video, told | {"anchors": [bisect.bisect_left(ticks, tick) for tick in anchors]}


def show(video: Video, plan: Json) -> Iterator[tuple[Json, bytes]]:
    """`plan`: frames by their numbers in the list of times, in order, and their size in pixels."""
    size = plan["width"], plan["height"]
    wanted = [video.ticks[number] for number in plan["frames"]]
    is_any = False
    for frame in _decoded(video, wanted):
        assert frame.pts is not None
        is_any = True
        yield {"time": _seconds(video, frame.pts)}, _encoded(frame, size, video.turned)
    if not is_any:
        raise RefusalError(INVALID, "is damaged: none of the frames to show can be decoded")


def _scenes(video: Video) -> list[int]:
    """Numbers of the frames with which scenes begin. Encoders put a keyframe where the picture changes, so only these
    are decoded and compared: so small that what moves in a picture is little and another picture is much.
    """
    container, stream = _opened(video.data, video.format)
    stream.codec_context.skip_frame = "NONKEY"
    begins, before = [0], None
    with suppress(av.FFmpegError):
        for frame in container.decode(stream):
            _check_size(frame.width, frame.height, video.most_pixels)
            seen = _picture(frame, *_GLANCE)
            number = bisect.bisect_left(video.ticks, frame.pts or 0)
            if before is not None and begins[-1] < number < len(video.ticks) and _difference(before, seen) > _CHANGE:
                begins.append(number)
            before = seen
    return begins


def _difference(one: Image.Image, other: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / len(one.getbands())


def _opened(data: bytes, name: str) -> tuple[InputContainer, VideoStream]:
    """The demuxer is named, so that none is chosen that reads on elsewhere, as a playlist's does."""
    try:
        options = {"protocol_whitelist": "none"}
        container = av.open(io.BytesIO(data), format=name, options=options, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise RefusalError(INVALID, "is damaged: its header cannot be read") from error
    assert isinstance(container, InputContainer)
    if not container.streams.video:
        raise RefusalError(INVALID, "holds no video: it has no stream of pictures")
    stream = container.streams.video[0]
    if stream.codec_context is None or stream.time_base is None or stream.time_base <= 0:
        raise RefusalError(INVALID, "is damaged, or in a format that is not read here")
    stream.codec_context.thread_count = 1  # the process's limits are for one
    return container, stream


def _first(container: InputContainer, stream: VideoStream, most_pixels: int) -> VideoFrame:
    """Says what only a decoded frame can say: that there is one, and how it is turned."""
    _check_size(stream.width, stream.height, most_pixels)
    with suppress(av.FFmpegError):
        for frame in container.decode(stream):
            _check_size(frame.width, frame.height, most_pixels)
            return frame
    raise RefusalError(INVALID, "is damaged: no frame of it can be decoded")


def _check_size(width: int, height: int, most: int) -> None:
    if width < 1 or height < 1:
        raise RefusalError(INVALID, "is damaged: it states no size")
    if width * height > most:
        raise RefusalError(TOO_LARGE, f"has {width}x{height} pixels a frame, and {most} are the most: scale it down")


def _indexed(
    container: InputContainer, stream: VideoStream, most: int
) -> tuple[list[int], list[int], list[int], list[int]]:
    """When each frame is shown, which are keyframes, which are anchors, and each one's bytes."""
    sizes: dict[int, int] = {}
    keys: set[int] = set()
    anchors: list[int] = []
    with suppress(av.FFmpegError):  # what lies before the damage is shown
        for packet in container.demux(stream):
            if packet.pts is None or packet.size == 0 or packet.is_discard:
                continue
            sizes[packet.pts] = packet.size
            if packet.is_keyframe:
                keys.add(packet.pts)
            if not anchors or packet.pts > anchors[-1]:
                anchors.append(packet.pts)
            if len(sizes) > most:
                raise RefusalError(TOO_LARGE, f"has more than {most} frames: cut it")
    if not sizes:
        raise RefusalError(INVALID, "is damaged: it has no frames with a time")
    ticks = sorted(sizes)
    return ticks, sorted(keys), anchors, [sizes[tick] for tick in ticks]


def _duration(video: Video) -> float:
    """To the last frame, and as long again as a frame is shown in the mean."""
    span, count = video.ticks[-1] - video.ticks[0], len(video.ticks)
    return float((span + (Fraction(span, count - 1) if count > 1 else 0)) * video.base)


def _seconds(video: Video, tick: int) -> float:
    return float((tick - video.ticks[0]) * video.base)


def _upright(stream: VideoStream, frame: VideoFrame, turned: int) -> tuple[int, int]:
    """As it is looked at: pixels may be no squares, and a telephone may have been held upright."""
    shape = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, _LONG_PIXEL) <= shape <= _LONG_PIXEL:
        shape = Fraction(1)
    width, height = max(1, round(frame.width * shape)), frame.height
    return (height, width) if turned in (90, 270) else (width, height)


def _decoded(video: Video, wanted: Sequence[int]) -> Iterator[VideoFrame]:
    """The wanted frames in order; those that damage has taken are left out."""
    container, stream = _opened(video.data, video.format)
    anchors = set(video.anchors)
    is_lean = len(anchors) < len(video.ticks)
    runs = _runs(video.keys, wanted)
    for number, (key, targets) in enumerate(runs):
        if number % _TRIED_TOGETHER == 0:
            is_lean = is_lean and _needs_no_b_frames(video, runs[number : number + _TRIED_TOGETHER])
        left: Sequence[int] = targets
        if is_lean and anchors.issuperset(targets):
            _jump(container, stream, key)
            left = yield from _without_b_frames(video, container, stream, targets)
            is_lean = not left  # what has not come may be there all the same
        if not left:
            continue
        _jump(container, stream, key)
        frames = _frames(container, stream, set(left), video.most_pixels)
        first = next(frames, None)
        if first is None or first.pts is None or first.pts > left[0]:
            # A jump that goes too far, or fails: its index is not to be trusted.
            yield from _straight(video, [one for one in wanted if one >= left[0]])
            return
        yield from _until_last(chain((first,), frames), left)


def _without_b_frames(
    video: Video, container: InputContainer, stream: VideoStream, targets: Sequence[int]
) -> Generator[VideoFrame, None, Sequence[int]]:
    """The targets up to one that does not come; returned are those that are left."""
    given = 0
    for frame in _until_last(_frames(container, stream, set(), video.most_pixels, "BIDIR"), targets):
        if frame.pts != targets[given]:
            break
        yield frame
        given += 1
    return targets[given:]


def _needs_no_b_frames(video: Video, runs: Sequence[Run]) -> bool:
    """Whether the other frames are the same without them, tried where most changes: no header tells it.

    P-frames may refer to B-frames, as those of x264 with several references do; encoders of HEVC call all frames B.
    """
    if len(runs) < _WORTH_A_TRIAL:
        return False
    key, targets = max(runs, key=lambda run: _bytes_behind_key(video, run))
    first, last = bisect.bisect_left(video.anchors, key), bisect.bisect_right(video.anchors, targets[-1])
    compared = video.anchors[first:last][:_COMPARED]
    return bool(compared) and _digests(video, key, compared, "BIDIR") == _digests(video, key, compared, "NONREF")


def _bytes_behind_key(video: Video, run: Run) -> int:
    key, targets = run
    return sum(video.sizes[bisect.bisect_right(video.ticks, key) : bisect.bisect_right(video.ticks, targets[-1])])


def _digests(video: Video, key: int, targets: Sequence[int], skip: Skip) -> list[tuple[int | None, int]]:
    container, stream = _opened(video.data, video.format)
    _jump(container, stream, key)
    frames = _until_last(_frames(container, stream, set(), video.most_pixels, skip), targets)
    return [(frame.pts, zlib.crc32(_picture(frame, frame.width, frame.height).tobytes())) for frame in frames]


def _jump(container: InputContainer, stream: VideoStream, key: int) -> None:
    with suppress(av.FFmpegError):
        container.seek(key, stream=stream)


def _straight(video: Video, targets: Sequence[int]) -> Iterator[VideoFrame]:
    """From the file's beginning, without jumps."""
    container, stream = _opened(video.data, video.format)
    yield from _until_last(_frames(container, stream, set(targets), video.most_pixels), targets)


def _runs(keys: Sequence[int], wanted: Sequence[int]) -> list[Run]:
    """Wanted frames that are decoded in one go, with no keyframe between them to jump to; each with its keyframe."""
    runs: list[Run] = []
    for tick in wanted:
        before = bisect.bisect_right(keys, tick)
        key = keys[before - 1] if before else wanted[0]
        if runs and key <= runs[-1][1][-1]:
            runs[-1][1].append(tick)
        else:
            runs.append((key, [tick]))
    return runs


def _until_last(frames: Iterator[VideoFrame], targets: Sequence[int]) -> Iterator[VideoFrame]:
    wanted = set(targets)
    for frame in frames:
        if frame.pts in wanted:
            yield frame
        if frame.pts is not None and frame.pts >= targets[-1]:
            return


def _frames(
    container: InputContainer, stream: VideoStream, targets: set[int], most_pixels: int, skip: Skip = "NONREF"
) -> Iterator[VideoFrame]:
    """From where the container is. Frames that may be left out are not decoded, unless they are among the targets."""
    with suppress(av.FFmpegError):
        stream.codec_context.open(strict=False)  # AV1's decoder keeps for ever what it is told to leave out here
        for packet in container.demux(stream):
            is_wanted = packet.pts is None or packet.pts in targets
            stream.codec_context.skip_frame = "DEFAULT" if is_wanted else skip
            with suppress(av.InvalidDataError):  # one frame is damaged; the next may not be
                for frame in packet.decode():
                    _check_size(frame.width, frame.height, most_pixels)
                    assert isinstance(frame, VideoFrame)
                    yield frame


def _picture(frame: VideoFrame, width: int, height: int) -> Image.Image:
    image: Image.Image = frame.reformat(width, height, "rgb24", interpolation="AREA").to_image()  # type: ignore[no-untyped-call]
    return image


def _encoded(frame: VideoFrame, size: tuple[int, int], turned: int) -> bytes:
    """JPEG, since a frame is a photograph that was compressed before."""
    width, height = size[::-1] if turned in (90, 270) else size
    image = _picture(frame, width, height)
    if turned in _TURNS:
        image = image.transpose(_TURNS[turned])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _warm_up() -> None:
    """What is imported at its first use has to be there before no file can be opened any more."""
    for module in ("audio.stream", "audio.codeccontext", "subtitles.stream", "subtitles.codeccontext"):
        import_module(f"av.{module}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as output:
        stream = output.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for packet in (*stream.encode(VideoFrame(16, 16, "yuv420p")), *stream.encode()):
            output.mux(packet)
    limits = {"most_pixels": 256, "most_seconds": 9, "most_frames": 9}
    video, _ = open(buffer.getvalue(), {"format": "mov", "scenes": True, **limits})
    list(show(video, {"frames": [0], "width": 8, "height": 8}))


_warm_up()
