"""The image parts of a request as vLLM hands them over: a name in a data URL becomes the field that vLLM knows."""

import pytest

from kimi_serve.model.image_parts import find, settled

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
