"""Bad input gets a 4xx that names the part and the limit, unusual input its right answer, and the engine goes on."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from kimi_serve.gateway.gateway import Gateway
from kimi_serve.inputs.config import Checkpoint
from tests.stack import pictures
from tests.stack.served import CONTEXT, NAME, Server, fresh_http

GOOD = [pictures.part(pictures.plain(56, 56)), pictures.text("What?")]
WRAP = 5  # tokens around an image's own; the word "image" is two in the golden vocabulary
BYTE = "\x01"  # one token each: the golden vocabulary merges none
NOISE = pictures.noise(300, 300)


@pytest.fixture(autouse=True)
def engine_goes_on(server: Server) -> Iterator[None]:
    yield
    assert server.chat(GOOD).status == 200


def second(part: object) -> list[object]:
    """`part` as the second of three images: an error must name content[1]."""
    return [GOOD[0], part, GOOD[0]]


BROKEN = {
    "corrupt": NOISE[:41] + b"z" * 20 + NOISE[61:],
    "truncated": NOISE[:5000],
    "truncated jpeg": pictures.encoded(Image.effect_noise((300, 300), 50), "JPEG")[:5000],
    "empty": b"",
    "text": b"not a picture",
    "html": b"<html><body>404</body></html>",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_picture_that_cannot_be_read_is_named(server: Server, name: str) -> None:
    reply = server.chat(second(pictures.part(BROKEN[name])))
    assert reply.status == 400
    assert reply.error.startswith("messages[0].content[1]: ")
    assert "image" in reply.error


def test_a_decompression_bomb_is_refused_with_the_limit(server: Server) -> None:
    reply = server.chat(second(pictures.part(pictures.huge_png(20_000, 20_000))))
    assert reply.status == 400
    assert reply.error.startswith("messages[0].content[1]: ")
    assert "178956970 pixels" in reply.error


def test_a_side_too_long_for_the_tower_is_refused_with_the_limit(server: Server) -> None:
    reply = server.chat(second(pictures.part(pictures.plain(10, 8000))))
    assert reply.status == 400
    assert reply.error.startswith("messages[0].content[1]: image size 10x8000: too long")
    assert "under 512" in reply.error


def test_the_image_of_an_earlier_turn_is_named(server: Server) -> None:
    turns = [
        {"role": "user", "content": [pictures.part(pictures.plain(10, 8000))]},
        {"role": "assistant", "content": "Long."},
        {"role": "user", "content": GOOD},
    ]
    reply = server.conversation(turns)
    assert reply.status == 400
    assert reply.error.startswith("messages[0].content[0]: ")


URLS = {
    "ftp://127.0.0.1/x.png": "'ftp' is not supported; supported: http, https, data",
    "file:///etc/passwd": "'file' is not supported",
    "gopher://x/y": "'gopher' is not supported",
    "picture.png": "without a scheme is not supported",
    "": "image_url is empty",
    "data:image/png,abc": "only base64 data URLs",
    "data:image/png;base64,####": "base64",
    "data:image/png;base64,AAA": "base64",
    "data:text/plain;base64,aGk=": "cannot identify image file",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_is_no_picture_is_named(server: Server, url: str) -> None:
    reply = server.chat(second(pictures.at(url)))
    assert reply.status == 400
    assert reply.error.startswith("messages[0].content[1]: ")
    assert URLS[url] in reply.error


def test_a_host_that_does_not_answer_is_the_callers_mistake(server: Server) -> None:
    reply = server.chat(second(pictures.at("http://127.0.0.1:1/x.png")))
    assert reply.status == 422
    assert "127.0.0.1:1" in reply.error


UNUSUAL = {
    "1x1": (pictures.plain(1, 1), (1, 1)),
    "100x10000": (pictures.plain(100, 10_000), (100, 10_000)),
    "10000x10000 bilevel": (pictures.huge_png(10_000, 10_000), (10_000, 10_000)),
    "thin": (pictures.golden("images/mode_thin_7168x14.png"), (7168, 14)),
    "turned by EXIF": (pictures.golden("images/mode_exif6_90x48.jpg"), (48, 90)),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_size_costs_what_geometry_says(server: Server, files: Checkpoint, name: str) -> None:
    data, size = UNUSUAL[name]
    reply = server.chat([pictures.part(data)])
    assert reply.status == 200, reply.body
    text = server.chat([]).prompt_tokens
    assert reply.prompt_tokens == text + WRAP + files.image.geometry.num_tokens(*size)


MODES = ["c8_l_pad", "c8_l_over", "c8_rgba_pad", "c8_rgba_over", "c8_la_pad", "c8_p_pad", "c8_p_over", "c8_p_trns"]
MODES += ["c8_one_pad", "c8_i16_pad", "c8_i16_exact", "c8_cmyk_pad"]


@pytest.mark.parametrize("name", MODES)
def test_an_image_mode_costs_the_golden_tokens(
    server: Server, golden_cases: dict[str, dict[str, object]], name: str
) -> None:
    case = golden_cases[name]
    (path,), (stats,) = case["images"], case["image_stats"]
    reply = server.chat([pictures.part(pictures.golden(path))])
    assert reply.status == 200, reply.body
    assert reply.prompt_tokens == server.chat([]).prompt_tokens + WRAP + stats["tokens"]


def test_alpha_is_dropped_and_not_laid_on_white(server: Server) -> None:
    # vLLM's own loading composites on white; the published processor drops alpha, so the hidden colour shows.
    hidden = np.full((56, 56, 4), (200, 30, 40, 0), dtype=np.uint8)
    transparent = pictures.encoded(Image.fromarray(hidden, "RGBA"))
    assert _judged(server, transparent) == _judged(server, pictures.plain(56, 56))
    assert _judged(server, transparent) != _judged(server, pictures.plain(56, 56, (255, 255, 255)))


def test_the_padding_of_a_cmyk_image_is_white(server: Server) -> None:
    # Published order: pad, then convert to RGB. Padding 0 in CMYK is white; in RGB it is black.
    cmyk = Image.new("CMYK", (40, 40), (0, 0, 0, 255))
    canvas = Image.new("CMYK", (56, 56))
    canvas.paste(cmyk)
    exact, padded = (pictures.encoded(image, "TIFF") for image in (canvas, cmyk))
    assert _judged(server, padded) == _judged(server, exact)
    assert _judged(server, padded) != _judged(server, pictures.encoded(cmyk.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_frame(server: Server, kind: str) -> None:
    first, *others = (Image.new("RGB", (60, 50), (80 * i, 90, 0)) for i in range(3))
    options = {"lossless": True} if kind == "WEBP" else {}
    moving = pictures.encoded(first, kind, save_all=True, append_images=others, duration=100, **options)
    assert _judged(server, moving) == _judged(server, pictures.encoded(first, kind, **options))


def test_513_images_are_refused_with_the_limit(server: Server) -> None:
    reply = server.chat([pictures.part(pictures.plain(1, 1))] * 513)
    assert reply.status == 400
    assert "512 image" in reply.error


def test_512_distinct_images_are_answered_and_counted_to_the_token(
    server: Server, files: Checkpoint, front: tuple[str, Gateway]
) -> None:
    """By the engine alone, and through the gateway, which counts before it asks."""
    rng = np.random.default_rng(512)
    sizes = [(int(width), int(height)) for width, height in rng.integers(1, 57, (512, 2))]
    parts = [pictures.part(pictures.plain(*size, (red, green, 0))) for size, red, green in _told_apart(sizes)]
    assert len({str(part) for part in parts}) == 512
    expected = server.chat([]).prompt_tokens + sum(WRAP + files.image.geometry.num_tokens(*size) for size in sizes)
    alone = server.chat(parts)
    assert (alone.status, alone.prompt_tokens) == (200, expected)
    body = {"model": NAME, "messages": [{"role": "user", "content": parts}], "max_tokens": 4, "temperature": 0}
    with fresh_http(front[0]) as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["x-kimi-serve-prompt-tokens"]) == answer.json()["usage"]["prompt_tokens"] == expected
    assert answer.json()["choices"][0]["message"]["content"] == alone.text


@pytest.mark.parametrize("picture", [False, True], ids=["text", "image"])
def test_a_prompt_fits_up_to_one_token_less_than_the_context(server: Server, picture: bool) -> None:
    head = [GOOD[0]] if picture else []
    spare = CONTEXT - server.chat([*head, pictures.text("0")]).prompt_tokens
    fits = server.chat([*head, pictures.text("0" + BYTE * (spare - 1))], max_tokens=1)
    assert (fits.status, fits.prompt_tokens) == (200, CONTEXT - 1)
    full = server.chat([*head, pictures.text("0" + BYTE * spare)], max_tokens=1)
    assert full.status == 400
    assert "max_tokens must be at least 1" in full.error  # vLLM's words: it takes what room is left, which is none
    over = server.chat([*head, pictures.text("0" + BYTE * (spare + 1))], max_tokens=1)
    assert over.status == 400
    assert str(CONTEXT) in over.error


def test_a_very_long_text_is_refused_with_the_limit(server: Server) -> None:
    reply = server.chat("word " * 200_000)
    assert reply.status == 400
    assert str(CONTEXT) in reply.error


def _told_apart(sizes: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], int, int]]:
    """Each size with a red and a green that no other has."""
    for number, size in enumerate(sizes):
        yield size, number % 256, 128 * (number // 256)


def _user(part: dict[str, object]) -> dict[str, object]:
    return {"role": "user", "content": [part]}


REQUESTS: dict[str, tuple[dict[str, object], str]] = {
    "more answer than context": ({"max_tokens": CONTEXT + 1}, f"max_model_len={CONTEXT}"),
    "unknown template option": ({"chat_template_kwargs": {"verbose": 1}}, "verbose not supported; supported: "),
    "keep_thoughts of a wrong type": ({"chat_template_kwargs": {"keep_thoughts": "yes"}}, "supported: true, false"),
    "own template": ({"chat_template": "{{ messages }}"}, "hat template"),
    "processor options": ({"mm_processor_kwargs": {"in_token_limit": 9}}, "mm_processor_kwargs"),
    "media options": ({"media_io_kwargs": {"image": {"image_mode": "L"}}}, "media_io_kwargs"),
    "no messages": ({"messages": []}, "messages: is empty"),
    "unknown role": ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role: 'king' is not supported"),
    "video": ({"messages": [_user({"type": "video_url", "video_url": {"url": "data:,"}})]}, "0 video"),
    "audio": ({"messages": [_user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})]}, "0 audio"),
    "tool reference": ({"messages": [_user({"type": "tool_reference", "name": "f"})]}, "'tool_reference'"),
    "unknown part": ({"messages": [_user({"type": "smell", "smell": "rose"})]}, "smell"),
    "image part without an image": ({"messages": [_user({"type": "image_url"})]}, "image_url"),
    "number for content": ({"messages": [{"role": "user", "content": 5}]}, "content"),
    "continue a user's message": (
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        "continue_final_message needs 'assistant'",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_cannot_be_meant_is_refused_by_field(server: Server, name: str) -> None:
    options, words = REQUESTS[name]
    reply = server.conversation(**{"messages": [{"role": "user", "content": GOOD}], **options})
    assert reply.status == 400
    assert words in reply.error


@pytest.mark.parametrize("token", [1280, 1281, 2**31, 2**63])
def test_a_token_without_an_embedding_is_refused(server: Server, token: int) -> None:
    reply = server.post("/v1/completions", {"prompt": [1, token], "max_tokens": 1})
    assert reply.status == 400
    assert str(token) in reply.error


def _judged(server: Server, data: bytes) -> object:
    """What the model makes of a picture: the answer's tokens and their probabilities."""
    reply = server.chat([pictures.part(data), pictures.text("What?")], logprobs=True)
    assert reply.status == 200, reply.body
    return reply.body["choices"][0]["logprobs"]
