"""What a request weighs."""

from kimi_serve.gateway.cost import Cost


def test_an_image_token_weighs_more_than_a_text_token_by_what_the_vision_tower_does() -> None:
    assert Cost(text_tokens=1000).weight == 1000
    assert Cost(text_tokens=0, image_tokens=1000).weight == 1600


def test_tokens_to_generate_count_and_pixels_and_bytes_do_not() -> None:
    assert Cost(text_tokens=10, output_tokens=5, pixels=10**6, bytes=10**6).weight == 15


def test_nothing_is_free() -> None:
    assert Cost(text_tokens=0).weight == 1
