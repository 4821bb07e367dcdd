"""Data URLs: what vLLM's decoder takes, byte for byte, and the percent form besides."""

import base64

import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.gateway.media import data_urls
from kimi_serve.gateway.media.data_urls import HEAD_LIMIT, decode
from kimi_serve.protocol.errors import ApiError


def refusal(url: str | bytes, max_bytes: int = 1000) -> str:
    with pytest.raises(ApiError) as caught:
        decode(url, max_bytes=max_bytes)
    return caught.value.code


@given(st.binary(max_size=200))
def test_base64_is_decoded_from_text_and_from_bytes(data: bytes) -> None:
    url = data_urls.encode(data, "image/png")
    assert decode(url, max_bytes=200) == decode(url.encode(), max_bytes=200) == data


@given(st.text(alphabet="AQRabz09+/-_= \n%", max_size=12))
def test_base64_is_taken_and_refused_as_by_the_engine(text: str) -> None:
    try:
        engine: bytes | None = pybase64.b64decode(text, validate=True)
    except ValueError:
        engine = None
    try:
        ours: bytes | None = decode(f"data:image/png;base64,{text}", max_bytes=1000)
    except ApiError:
        ours = None
    assert ours == engine


@pytest.mark.parametrize(
    ("url", "data"),
    [
        ("data:,plain", b"plain"),
        ("data:text/plain;charset=utf-8,a%20b%2Cc%FF", b"a b,c\xff"),
        ("DATA:image/png;base64,QUJD", b"ABC"),
        ("data:;base64,QUI=", b"AB"),
        ("data:image/png;name=a.png;base64,QQ==", b"A"),
        ("data:image/png;base64,", b""),
    ],
)
def test_the_forms_of_rfc_2397_are_decoded(url: str, data: bytes) -> None:
    assert decode(url, max_bytes=1000) == data


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:",
        "data:image/png;base64",
        "http://example.com/",
        "data:image/png;base64,QUJ",
        "data:image/png;base64,QUJD\n",
        "data:image/png;base64,Q U J D",
        "data:image/png;base64,-_-_",
        "data:image/png;base64,QQ==QQ==",
        "data:image/png;base64,=QQ=",
        "data:image/png;base64,QUJD%3D",
        "data:image/png;base64,ＱＵＪＤ",
        "data:,%",
        "data:,%4",
        "data:,%zz",
        "data:,a b",
        "data:,é",
        "data:" + "a" * HEAD_LIMIT + ",x",
        b"data:,\xff",
        "data:,\ud800",
    ],
)
def test_other_forms_are_refused(url: str | bytes) -> None:
    assert refusal(url) == "invalid_media_url"


@pytest.mark.parametrize("size", [999, 1000, 1001, 1002, 1003])
def test_the_limit_on_bytes_is_exact(size: int) -> None:
    for url in (data_urls.encode(bytes(size), "image/png"), "data:," + "%00" * size):
        if size <= 1000:
            assert decode(url, max_bytes=1000) == bytes(size)
        else:
            assert refusal(url) == "image_too_large"


def test_size_is_checked_before_anything_is_decoded() -> None:
    assert refusal("data:image/png;base64," + "!" * 2000) == "image_too_large"


def test_the_error_does_not_repeat_the_data() -> None:
    secret = base64.b64encode(b"hunter2").decode()
    with pytest.raises(ApiError) as caught:
        decode(f"data:image/png;base64,{secret}!", max_bytes=1000)
    assert secret not in caught.value.message
