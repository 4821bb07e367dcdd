"""Frames of a video, by FFmpeg. Knows times, sizes and rotation; the gateway says which frames, and how large.

The times of all frames are read from the packets, which decodes nothing. Then each wanted frame is reached from the
keyframe before it, or from where the decoder already is, and frames that no other depends on are left out on the way.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from itertools import chain
from typing import Any, Final

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image, ImageChops, ImageStat

from kimi_serve.gateway.expansion.child.refusal import INVALID, TOO_LARGE, RefusalError

Json = dict[str, Any]

JPEG_QUALITY: Final = 90
_LONG_PIXEL: Final = 10  # times as long as wide: beyond, what a file says of its pixels' shape is damage
_GLANCE: Final = (32, 18)  # pixels
_CHANGE: Final = 16  # of 255, in the mean: another scene
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
    turned: int  # degrees, counterclockwise


def open(data: bytes, asked: Json) -> tuple[Video, Json]:
    """`asked`: the demuxer and the limits. Told: the upright size, the duration, and when each frame is shown.

    Where `scenes` is asked for, also the frames with which a scene begins.
    """
    container, stream = _opened(data, asked["format"])
    first = _first(container, stream, asked["most_pixels"])
    container.close()
    turned = int(first.rotation) % 360
    container, stream = _opened(data, asked["format"])
    assert stream.time_base is not None
    ticks, keys = _indexed(container, stream, asked["most_frames"])
    container.close()
    keys = ticks[:1] if asked["format"] == "gif" else keys  # its frames are drawn over each other
    video = Video(data, asked["format"], asked["most_pixels"], stream.time_base, ticks, keys, turned)
    duration = _duration(video)
    if duration > asked["most_seconds"]:
        why = f"lasts {duration:.0f} seconds, and {asked['most_seconds']:g} are the most: cut it"
        raise RefusalError(TOO_LARGE, why)
    width, height = _upright(stream, first, turned)
    times = [_seconds(video, tick) for tick in ticks]
    scenes = _scenes(video) if asked.get("scenes") else [0]
    return video, {"width": width, "height": height, "duration": duration, "times": times, "scenes": scenes}


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


def _indexed(container: InputContainer, stream: VideoStream, most: int) -> tuple[list[int], list[int]]:
    """When each frame is shown, and which are keyframes."""
    ticks, keys = set(), set()
    with suppress(av.FFmpegError):  # what lies before the damage is shown
        for packet in container.demux(stream):
            if packet.pts is None or packet.size == 0 or packet.is_discard:
                continue
            ticks.add(packet.pts)
            if packet.is_keyframe:
                keys.add(packet.pts)
            if len(ticks) > most:
                raise RefusalError(TOO_LARGE, f"has more than {most} frames: cut it")
    if not ticks:
        raise RefusalError(INVALID, "is damaged: it has no frames with a time")
    return sorted(ticks), sorted(keys)


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
    for key, targets in _runs(video.keys, wanted):
        with suppress(av.FFmpegError):
            container.seek(key, stream=stream)
        frames = _frames(container, stream, set(targets), video.most_pixels)
        first = next(frames, None)
        if first is None or first.pts is None or first.pts > targets[0]:
            # A jump that goes too far, or fails: its index is not to be trusted.
            yield from _straight(video, [one for one in wanted if one >= targets[0]])
            return
        yield from _until_last(chain((first,), frames), targets)


def _straight(video: Video, targets: Sequence[int]) -> Iterator[VideoFrame]:
    """From the file's beginning, without jumps."""
    container, stream = _opened(video.data, video.format)
    yield from _until_last(_frames(container, stream, set(targets), video.most_pixels), targets)


def _runs(keys: Sequence[int], wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Wanted frames that are decoded in one go, with no keyframe between them to jump to; each with its keyframe."""
    runs: list[tuple[int, list[int]]] = []
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
    container: InputContainer, stream: VideoStream, targets: set[int], most_pixels: int
) -> Iterator[VideoFrame]:
    """From where the container is. What no other frame depends on, and nobody wants, is not decoded."""
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            is_wanted = packet.pts is None or packet.pts in targets
            stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
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
