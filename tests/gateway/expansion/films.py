"""Videos to read, made with PyAV. Knows what each frame shows: its number, as the colour of the whole frame."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.frame import PictureType

CODECS = {"mp4": "libx264", "mov": "libx264", "webm": "libvpx", "gif": "gif"}
SIZE = (96, 64)


def film(
    container: str = "mp4",
    frames: int = 50,
    *,
    rate: int = 10,
    size: tuple[int, int] = SIZE,
    gop: int = 12,
    turned: int = 0,
    times: list[float] | None = None,
    b_frames: bool = True,
) -> bytes:
    """`times`: when each frame is shown, in seconds; evenly by `rate` otherwise."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(CODECS[container], rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if container == "gif" else "yuv420p"
        stream.gop_size = gop
        stream.options = {} if b_frames else {"bf": "0"}
        stream.codec_context.time_base = Fraction(1, 1000)
        if turned:
            stream.set_display_rotation(turned)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            seconds = times[number] if times is not None else number / rate
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """Its number in two digits of base 8: the left half's brightness, and the right half's."""
    shown = np.zeros((size[1], size[0], 3), np.uint8)
    shown[:, : size[0] // 2] = number // 8 % 8 * 36
    shown[:, size[0] // 2 :] = number % 8 * 36
    return shown


def number_of(shown: np.ndarray) -> int:
    """The number that a frame shows, of 64."""
    wide, red = shown.shape[1], shown[..., 0]  # a GIF has eight reds
    halves = red[:, wide // 8 : wide * 3 // 8], red[:, wide * 5 // 8 : wide * 7 // 8]
    left, right = (round(float(half.mean()) / 36) for half in halves)
    return left * 8 + right


def moving(
    codec: str, container: str, options: dict[str, str], frames: int = 125, size: tuple[int, int] = SIZE
) -> bytes:
    """A bright bar on its way over noise that changes: a picture for which an encoder uses all references it has.

    One thread: with several, x264 chooses its references by who is ready first.
    """
    wide, high = size
    chance = np.random.default_rng(1)
    noise = [chance.integers(-6, 7, (high, wide)) for _ in range(7)]
    y, x = np.mgrid[0:high, 0:wide]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=30, options=options | {"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = wide, high, "yuv420p"
        for number in range(frames):
            planes = np.full((high * 3 // 2, wide), 128, np.uint8)
            planes[:high] = (x // 2 + y // 3 + number) % 160 + 40 + noise[number % 7]
            planes[20:40, number * 3 % (wide - 10) :][:, :10] = 230
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def cut(lengths: Sequence[int], *, rate: int = 10) -> bytes:
    """An MP4 of scenes of so many frames, each of another brightness, with something that moves in all of them.

    Each begins with a keyframe, as encoders make them where a picture changes; there are others in between.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *SIZE, "yuv420p", 30
        stream.options = {"forced-idr": "1"}
        number = 0
        for scene, length in enumerate(lengths):
            for at in range(length):
                shown = np.full((SIZE[1], SIZE[0], 3), 20 + scene % 2 * 150 + scene * 10, np.uint8)
                shown[20:30, number % 80 : number % 80 + 10] = 255
                frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
                frame.pict_type = PictureType.NONE if at else PictureType.I
                output.mux(stream.encode(frame))
                number += 1
        output.mux(stream.encode())
    return buffer.getvalue()
