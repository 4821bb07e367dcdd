"""SSE frames: where they end, that chunking does not matter, and what makes one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.protocol.sse import DONE, FrameTooLargeError, Splitter, comment, data_of, event

PIECES = [b"\n", b"\r", b"\r\n", b"data: x", b":", b"\x00", "é".encode(), b"event: e"]
streams = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


def split(chunks: list[bytes]) -> list[bytes]:
    splitter = Splitter()
    frames = [frame for chunk in chunks for frame in splitter.feed(chunk)]
    return frames + splitter.finish()


def by_the_letter(stream: bytes) -> list[bytes]:
    """The definition, one character at a time: a frame is over at the second of two line ends in a row."""
    frames, start, at, ends = [], 0, 0, 0
    while at < len(stream):
        step = 2 if stream[at : at + 2] == b"\r\n" else 1
        ends = ends + 1 if stream[at : at + 1] in (b"\r", b"\n") else 0
        at += step
        if ends == 2:
            frames.append(stream[start:at])
            start, ends = at, 0
    return frames


@given(streams)
def test_frames_end_where_the_definition_says(stream: bytes) -> None:
    assert split([stream]) == by_the_letter(stream)


@given(streams, st.data())
def test_any_chunking_gives_the_same_frames(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert split(chunks) == by_the_letter(stream)


@given(streams)
def test_single_bytes_give_the_same_frames(stream: bytes) -> None:
    assert split([bytes([byte]) for byte in stream]) == by_the_letter(stream)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_of_the_format_ends_a_frame(end: bytes) -> None:
    frames = [b"data: 1" + end + end, b"event: e" + end + b"data: 2" + end + end]
    assert split([b"".join(frames)]) == frames


def test_a_frame_is_handed_on_as_soon_as_its_last_line_feed_is_there() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: 1\n") == []
    assert splitter.is_inside_frame
    assert splitter.feed(b"\ndata") == [b"data: 1\n\n"]


def test_what_follows_the_last_frame_is_no_frame() -> None:
    assert split([b"data: 1\n\ndata: cut sho"]) == [b"data: 1\n\n"]


@pytest.mark.parametrize(
    "chunks", [[b"data: 12345\n\n"], [b"data: 123", b"45\n\n"], [b"data: 12345"], [b"\r" + b"x" * 12]]
)
def test_a_frame_above_the_bound_is_refused(chunks: list[bytes]) -> None:
    splitter = Splitter(max_frame_bytes=10)
    with pytest.raises(FrameTooLargeError, match="more than 10 bytes"):
        list(map(splitter.feed, chunks))


def test_the_bound_is_on_a_frame_and_not_on_the_stream() -> None:
    assert len(Splitter(max_frame_bytes=9).feed(b"data: 1\n\n" * 100)) == 100


def test_an_event_is_one_data_field_a_line() -> None:
    assert event("a\nb\r\nc") == b"data: a\ndata: b\ndata: c\n\n"
    assert event(b"{}", event="error") == b"event: error\ndata: {}\n\n"
    assert DONE == b"data: [DONE]\n\n"


def test_a_comment_is_a_frame_without_data() -> None:
    assert comment("keep-alive") == b": keep-alive\n\n"
    assert data_of(comment("keep-alive")) is None


def test_a_name_of_two_lines_cannot_smuggle_a_field() -> None:
    with pytest.raises(AssertionError, match="one line"):
        event("x", event="a\ndata: b")


@given(st.text())
def test_what_goes_into_an_event_comes_out_of_it(text: str) -> None:
    (frame,) = split([event(text, event="e")])
    assert data_of(frame) == text.replace("\r\n", "\n").replace("\r", "\n").encode()
    assert data_of(event(text)) == data_of(frame)


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        (b"data:x\n\n", b"x"),
        (b"data:  x\r\n\r\n", b" x"),
        (b"id: 1\ndata: x\n\n", b"x"),
        (b"data: x\nid: 1\n\n", b"x"),
        (b"data: x\r\r", b"x"),
        (b"data: \n\n", b""),
        (b"event: e\n\n", None),
    ],
)
def test_data_is_read_as_the_format_says(frame: bytes, data: bytes | None) -> None:
    assert data_of(frame) == data
