"""Equal beginnings have equal hashes."""

import pytest

from kimi_serve.gateway.replicas import Picture, Prompt, Text, read_prompt

SYSTEM = Text(b"system " * 1000, 1000)
QUESTION = Text(b"question", 10)
IMAGE = Picture(b"image", 1024)


def shared(first: Prompt, second: Prompt) -> int:
    """Tokens of the common beginning."""
    common = [end for end, a, b in zip(first.ends, first.hashes, second.hashes, strict=False) if a == b]
    return common[-1] if common else 0


def test_a_turn_begins_with_all_of_the_turn_before() -> None:
    before = read_prompt([SYSTEM, QUESTION, IMAGE], b"", opening=2)
    after = read_prompt([SYSTEM, QUESTION, IMAGE, Text(b"answer", 7), IMAGE], b"", opening=2)
    assert shared(before, after) == before.ends[-1] == 2034
    assert after.key == before.key


def test_a_long_text_is_found_although_its_end_differs() -> None:
    first = read_prompt([Text(b"x" * 10_000 + b"one", 2500)], b"", opening=1)
    second = read_prompt([Text(b"x" * 10_000 + b"two", 2500)], b"", opening=1)
    assert 2000 <= shared(first, second) < 2500
    assert first.ends[-1] == 2500


@pytest.mark.parametrize(
    "other",
    [
        [QUESTION, SYSTEM, IMAGE],
        [SYSTEM, Text(b"question?", 10), IMAGE],
        [SYSTEM, QUESTION, Picture(b"another", 1024)],
        [SYSTEM, QUESTION, Text(b"image", 1024)],
    ],
)
def test_another_prompt_is_another_prompt(other: list[Text | Picture]) -> None:
    ours = read_prompt([SYSTEM, QUESTION, IMAGE], b"", opening=2)
    assert shared(ours, read_prompt(other, b"", opening=2)) < ours.ends[-1]


def test_tenants_share_no_beginning() -> None:
    parts = [SYSTEM, QUESTION]
    assert shared(read_prompt(parts, b"a", opening=1), read_prompt(parts, b"b", opening=1)) == 0


def test_conversations_that_open_differently_have_different_keys() -> None:
    one = read_prompt([SYSTEM, QUESTION], b"", opening=2)
    two = read_prompt([SYSTEM, Text(b"task", 10)], b"", opening=2)
    assert one.key != two.key


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 4096])
def test_every_size_of_text_is_counted_once(size: int) -> None:
    prompt = read_prompt([QUESTION, Text(b"x" * size, size), IMAGE], b"", opening=1)
    assert prompt.ends[-1] == 10 + size + 1024
    assert list(prompt.ends) == sorted(prompt.ends)
    assert prompt.pictures == ((IMAGE, 10 + size + 1024),)
