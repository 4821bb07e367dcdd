"""The image parts of a request as vLLM hands them over: a name in a data URL becomes the field that vLLM knows."""

import pytest
from vllm.exceptions import VLLMValidationError

from kimi_serve.model.image_parts import ImagePart, check_rows, find, inlined, settled, unreadable

Json = dict[str, object]


def read(part: Json) -> Json:
    """A part as it comes out, from content that can be read only once."""
    (message,) = settled([{"role": "user", "content": iter([part])}])
    (found,) = message["content"]
    return dict(found)


def at(url: str | None, **more: object) -> Json:
    return {"type": "image_url", "image_url": {"url": url}, **more}


def test_a_name_and_bytes_become_a_field_and_a_plain_data_url() -> None:
    assert read(at("data:image/png;uuid=ab-1_Z;base64,AAAA")) == at("data:image/png;base64,AAAA", uuid="ab-1_Z")


def test_a_name_without_bytes_becomes_the_name_alone() -> None:
    part = read(at("data:image/png;uuid=ab;base64,"))
    assert part == {"type": "image_url", "image_url": None, "uuid": "ab"}
    assert [one.part for one in find([{"role": "user", "content": [part]}])] == [part]


def test_the_field_wins() -> None:
    assert read(at("data:image/png;uuid=ab;base64,AAAA", uuid="cd"))["uuid"] == "cd"


@pytest.mark.parametrize(
    "part",
    [
        at("data:image/png;base64,AAAA"),
        at("https://example.com/x.png?;uuid=ab;base64,"),
        at("data:image/png;uuid=;base64,AAAA"),
        at("data:image/png;uuid=a b;base64,AAAA"),
        at("data:image/png;uuid=ab,AAAA"),
        at(None, uuid="ab"),
        {"type": "text", "text": "x", "image_url": {"url": "data:image/png;uuid=ab;base64,AAAA"}},
        {"type": "text", "text": "data:image/png;uuid=ab;base64,AAAA"},
    ],
)
def test_everything_else_stays_as_it_came(part: Json) -> None:
    assert read(dict(part)) == part


ROWS = {"type": "image_embeds", "image_embeds": "AAAA"}


@pytest.mark.parametrize("part", [ROWS, {"image_embeds": "AAAA"}, {"image_embeds": None, "uuid": "ab"}])
def test_rows_are_numbered_among_the_images_and_can_be_read_again(part: Json) -> None:
    picture = at("https://example.com/x.png")
    found = find([{"role": "user", "content": [picture, {"type": "text", "text": "x"}, part]}])
    assert [one.where for one in found] == ["messages[0].content[0]", "messages[0].content[2]"]
    assert [one.part for one in inlined(found)] == [part]


WRONG = {
    "a list": (ROWS | {"image_embeds": [1, 2]}, "image_embeds: list is not supported; expected a tensor in base64"),
    "a number": (ROWS | {"image_embeds": {"image_embeds": 5}}, "image_embeds: int is not supported"),
    "numbers": (ROWS | {"image_embeds": {"image_embeds": [1.0]}}, "image_embeds: list is not supported"),
    "a number for a grid": (ROWS | {"image_embeds": {"image_grid_hws": 5}}, "image_grid_hws: int is not supported"),
    "another field": (
        ROWS | {"image_embeds": {"image_grid_thw": "AA"}},
        "image_embeds.image_grid_thw: is not supported",
    ),
    "nothing": (ROWS | {"image_embeds": None}, "image_embeds: is missing"),
    "no field": ({"type": "image_embeds"}, "image_embeds: is missing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_are_no_tensor_are_refused_by_place(name: str) -> None:
    part, said = WRONG[name]
    with pytest.raises(VLLMValidationError) as raised:
        check_rows([ImagePart("messages[0].content[1]", part)])
    assert f"messages[0].content[1]: {said}" in str(raised.value)


@pytest.mark.parametrize(
    "content", ["AAAA", {"image_embeds": "AAAA"}, {"image_embeds": "AAAA", "image_grid_hws": [4, 6]}]
)
def test_rows_in_base64_pass(content: object) -> None:
    check_rows([ImagePart("x", ROWS | {"image_embeds": content}), ImagePart("y", at("https://example.com/x.png"))])


def test_rows_that_cannot_be_read_are_refused_in_one_line() -> None:
    part = ImagePart("messages[0].content[1]", ROWS)
    said = str(part.refused_reading(RuntimeError("no archive\nDo this or that")))
    assert "messages[0].content[1]: image_embeds cannot be read: no archive" in said
    assert "Do this" not in said


def test_more_errors_are_the_callers_where_rows_are_read() -> None:
    rows, picture = ImagePart("a", ROWS), ImagePart("b", at("data:image/png;base64,AAAA"))
    assert EOFError in unreadable([picture, rows])
    assert EOFError not in unreadable([picture])
