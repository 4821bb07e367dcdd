"""Thoughts and answers: the authors' own extraction, and the same answer however the text is cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.inputs.thoughts import CLOSE, OPEN, Split, ThoughtStream, split

# Text that is likely to hold markers, parts of them, and the white space around them.
PARTS = st.sampled_from([OPEN, CLOSE, "◁", "▷", "◁/", "◁think", "/think▷", "think", " ", "\n", "\t", "a", "图", "é b"])
TEXT = st.lists(PARTS, max_size=12).map("".join)


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(TEXT)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    edges = [0, *cuts, len(text)]
    return text, [text[start:end] for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        (f"{OPEN}why{CLOSE}because", "why", "because"),
        (f"{OPEN}\nwhy \n{CLOSE}\n\nbecause \n", "why", "because \n"),
        (f" \n{OPEN}why{CLOSE}because", "why", "because"),
        (f"{OPEN}{CLOSE}because", "", "because"),
        (f"{OPEN}\n\n{CLOSE}because", "", "because"),
        (f"{OPEN}unfinished", "unfinished", ""),
        (f"{OPEN}unfinished ◁/thi", "unfinished ◁/thi", ""),
        (f"{OPEN}why{CLOSE}", "why", ""),
        ("only an answer", "", "only an answer"),
        (" spaces stay ", "", " spaces stay "),
        ("◁thin", "", "◁thin"),
        (f"before {OPEN}not a thought{CLOSE} after", "", f"before {OPEN}not a thought{CLOSE} after"),
        (f"{OPEN}why{CLOSE}because {CLOSE} again", "why", f"because {CLOSE} again"),
        (f"{OPEN}{OPEN}why{CLOSE}because", f"{OPEN}why", "because"),
        ("", "", ""),
    ],
)
def test_whole_output_is_split(text, thought, answer):
    assert split(text) == Split(thought, answer)


def test_prompt_that_ends_inside_a_thought_needs_no_opening_marker():
    assert split(f"why{CLOSE}because", opened=True) == Split("why", "because")


@given(cut_texts(), st.booleans())
def test_pieces_give_what_the_whole_gives(cut, opened):
    text, pieces = cut
    stream = ThoughtStream(opened=opened)
    fed = [stream.feed(piece) for piece in pieces] + [stream.finish()]
    assert Split("".join(one.thought for one in fed), "".join(one.answer for one in fed)) == split(text, opened=opened)


@given(cut_texts())
def test_no_thought_comes_after_an_answer_has_begun(cut):
    stream, answered = ThoughtStream(), False
    for piece in cut[1]:
        found = stream.feed(piece)
        assert not (answered and found.thought)
        answered = answered or bool(found.answer)
        assert stream.answering or not answered


@given(TEXT)
def test_nothing_but_markers_and_white_space_is_lost(text):
    found = split(text)
    kept = "".join((found.thought + found.answer).split())
    without_open = text.replace(OPEN, "", 1)
    assert kept in {"".join(part.split()) for part in (text, without_open, without_open.replace(CLOSE, "", 1))}


def test_answer_shows_as_soon_as_it_cannot_be_a_thought():
    assert ThoughtStream().feed("Hello").answer == "Hello"
    assert ThoughtStream().feed("◁this").answer == "◁this"


def test_thought_shows_while_it_grows():
    stream = ThoughtStream()
    assert stream.feed(f"{OPEN}one").thought == "one"
    assert stream.feed(" two").thought == " two"
    assert stream.feed(" ◁/thi").thought == ""
    assert stream.feed("s").thought == " ◁/this"
