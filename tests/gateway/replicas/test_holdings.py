"""What a replica is believed to hold."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_serve.gateway.replicas import Picture, Prompt, Text, read_prompt
from kimi_serve.gateway.replicas.holdings import Holdings


def prompt(*words: str) -> Prompt:
    return read_prompt([Text(word.encode(), 100) for word in words], b"", opening=1)


def with_images(*names: str) -> Prompt:
    return read_prompt([Text(b"look", 10), *(Picture(name.encode(), 1000) for name in names)], b"", opening=1)


def test_the_longest_known_beginning_is_found() -> None:
    holdings = Holdings(10_000, 0)
    holdings.remember_prefix(prompt("a", "b", "c"))
    assert holdings.prefix_tokens(prompt("a", "b", "c", "d")) == 300
    assert holdings.prefix_tokens(prompt("a", "b", "x")) == 200
    assert holdings.prefix_tokens(prompt("x", "b", "c")) == 0


def test_what_was_used_longest_ago_is_forgotten_first_and_from_its_end() -> None:
    holdings = Holdings(500, 0)
    old, new = prompt("a", "b", "c"), prompt("x", "y", "z")
    holdings.remember_prefix(old)
    holdings.remember_prefix(new)
    assert holdings.prefix_tokens(new) == 300
    assert holdings.prefix_tokens(old) == 200


def test_a_prompt_longer_than_the_cache_is_held_by_its_beginning() -> None:
    holdings = Holdings(250, 0)
    holdings.remember_prefix(prompt("a", "b", "c", "d"))
    assert holdings.prefix_tokens(prompt("a", "b", "c", "d")) == 200


words = st.lists(st.sampled_from("abc"), min_size=1, max_size=6)


@settings(max_examples=25)
@given(st.lists(words, max_size=20), st.integers(0, 1500))
def test_what_is_held_has_no_holes_so_bisection_finds_its_end(prompts: list[list[str]], capacity: int) -> None:
    holdings = Holdings(capacity, 0)
    for item in prompts:
        holdings.remember_prefix(prompt(*item))
        for other in prompts:
            asked = prompt(*other)
            held = [hash_ in holdings._blocks for hash_ in asked.hashes]
            assert held == sorted(held, reverse=True)
            assert holdings.prefix_tokens(asked) == 100 * sum(held)
        assert sum(holdings._blocks._sizes.values()) == holdings._blocks._total <= capacity


def test_images_are_held_each_for_itself() -> None:
    holdings = Holdings(0, 2500)
    holdings.remember_images(with_images("one", "two"))
    assert holdings.image_tokens(with_images("two", "three"), 0) == 1000
    holdings.remember_images(with_images("three"))
    assert [holdings.holds_image(name) for name in (b"one", b"two", b"three")] == [False, True, True]


def test_an_image_within_the_held_prefix_needs_no_encoding_either() -> None:
    holdings = Holdings(100_000, 0)
    asked = with_images("one", "two")
    holdings.remember_prefix(with_images("one"))
    assert holdings.prefix_tokens(asked) == 1010
    assert holdings.image_tokens(asked, 1010) == 1000


def test_what_the_engine_has_forgotten_is_forgotten() -> None:
    holdings = Holdings(10_000, 10_000)
    holdings.remember_images(with_images("one", "two"))
    holdings.remember_prefix(with_images("one"))
    holdings.forget_images([b"one", b"never seen"])
    assert (holdings.holds_image(b"one"), holdings.holds_image(b"two")) == (False, True)
    holdings.clear()
    assert not holdings.holds_image(b"two")
    assert holdings.prefix_tokens(with_images("one")) == 0
