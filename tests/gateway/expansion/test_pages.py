"""Ranges of pages, as clients write them."""

import pytest

from kimi_serve.gateway.expansion.pages import Range, read_pages
from kimi_serve.protocol.errors import ApiError


@pytest.mark.parametrize(
    ("asked", "ranges"),
    [
        ("1", [(1, 1)]),
        ("1-3,7", [(1, 3), (7, 7)]),
        ("5-", [(5, None)]),
        (" 2 - ", None),
        ("3, 1", [(3, 3), (1, 1)]),
        ("2-2", [(2, 2)]),
    ],
)
def test_numbers_and_ranges_are_read_in_their_order(asked: str, ranges: list[Range] | None) -> None:
    if ranges is None:
        with pytest.raises(ApiError, match="pages"):
            read_pages(asked, "here")
    else:
        assert read_pages(asked, "here") == ranges


@pytest.mark.parametrize(
    "asked", ["", "0", "-3", "3-1", "1,,2", "1-2-3", "a", "1;2", "٣", "9999999", "1," * 200 + "1", 1, [1]]
)
def test_anything_else_is_refused_by_name(asked: object) -> None:
    with pytest.raises(ApiError) as caught:
        read_pages(asked, "messages[0].content[0]")
    assert caught.value.code == "invalid_value"
    assert caught.value.param == "messages[0].content[0].pages"


def test_nothing_asked_is_all_pages() -> None:
    assert read_pages(None, "here") is None
