"""What a request costs, compared with the code that counts requests when they are served."""

from pathlib import Path

import pytest

from kimi_serve.errors import PlanError
from kimi_serve.inputs import chat
from kimi_serve.inputs.tokenizer import Tokenizer
from kimi_serve.launch.footprint import BUNDLED
from kimi_serve.plan import request, subject
from kimi_serve.plan.options import Options, Pictures, pictures_of

# A picture and "What is in the picture?" as the published tokenizer and template write them; 0 stands for the picture.
PUBLISHED_IDS = [
    *(163594, 14062, 163601, 3900, 554, 261, 13205, 26626, 163586),
    *(163587, 2482, 163601, 163602, 4017, 163603, 0, 163604, 5376, 387, 306, 276, 8968, 30, 163586),
    *(163588, 69702, 163601),
]


def test_a_published_prompt_costs_what_the_published_tokenizer_made_of_it() -> None:
    options = Options(preset="instruct", text=6, pictures=(Pictures("image", 448, 448, 1),))
    cost = request.cost(options, subject.published("instruct"))
    assert cost.prompt == len(PUBLISHED_IDS) - 1 + 256


def test_a_checkpoints_own_template_and_tokenizer_are_counted() -> None:
    tokenizer = Tokenizer.from_directory(BUNDLED)
    words = "Which shape is red?"
    content = [{"type": "image"}, {"type": "text", "text": words}, {"type": "image"}]
    ids = chat.render([{"role": "user", "content": content}], tokenizer)
    planned = subject.from_directory(BUNDLED)
    tokens = planned.checkpoint.image.geometry.num_tokens(500, 300)
    pictures = (Pictures("image", 500, 300, 2),)
    cost = request.cost(Options(text=len(tokenizer.encode(words)), pictures=pictures), planned)
    assert cost.prompt == len(ids) - 2 + 2 * tokens


def test_pages_and_frames_cost_what_pictures_of_their_size_cost() -> None:
    planned = subject.published("thinking-2506")
    costs = [
        request.cost(Options(preset="thinking-2506", pictures=(Pictures(kind, 1240, 1754, 3),)), planned)
        for kind in ("image", "page", "frame")
    ]
    assert len({cost.prompt for cost in costs}) == 1
    assert costs[0].pictures[0].tokens == 3 * (planned.checkpoint.image.geometry.num_tokens(1240, 1754) + 4)


def test_only_2506_reads_large_pictures_whole() -> None:
    picture = (Pictures("image", 1792, 1792, 1),)
    seen = {
        preset: request.cost(Options(preset=preset, pictures=picture), subject.published(preset)).pictures[0].seen
        for preset in ("instruct", "thinking", "thinking-2506")
    }
    assert seen == {"instruct": (896, 896), "thinking": (896, 896), "thinking-2506": (1792, 1792)}


def costs(**options: object) -> request.Request:
    return request.cost(Options(preset="instruct", **options), subject.published("instruct"))  # type: ignore[arg-type]


def test_a_request_fits_up_to_the_last_token() -> None:
    assert costs(text=1_000 - 16 - 100, max_tokens=100, context=1_000).problems == ()
    over = costs(text=1_000 - 16 - 99, max_tokens=100, context=1_000)
    assert over.problems == ("the prompt's 901 tokens and max_tokens 100 are 1 more than the context of 1000",)


def test_without_max_tokens_the_answer_has_what_is_left() -> None:
    assert costs(text=84, context=1_000).answer == 900
    (problem,) = costs(text=984, context=1_000).problems
    assert problem.endswith("one token of answer are 1 more than the context of 1000")


def test_512_pictures_of_420_pixels_fit_and_no_more() -> None:
    fits = costs(pictures=(Pictures("image", 420, 420, 256), Pictures("frame", 420, 420, 256)))
    assert fits.prompt == 16 + 512 * (225 + 4)
    assert fits.problems == ()
    more = costs(pictures=(Pictures("image", 28, 28, 513),))
    assert more.problems == ("513 pictures are more than the 512 of one prompt",)


def test_a_picture_that_the_model_refuses_is_an_error_with_its_option() -> None:
    with pytest.raises(PlanError, match="--page: image size 100x10000: too long"):
        costs(pictures=(Pictures("page", 100, 10_000, 1),))


def test_a_context_beyond_the_models_positions_is_refused() -> None:
    with pytest.raises(PlanError, match="--context: 131073 is more than the model's 131072 positions"):
        costs(context=131_073)


@pytest.mark.parametrize("text", ["640", "640x", "x480", "640x480x0", "640x480x2x2", "-1x5", ""])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"--image: .* expected WxH or WxHxN"):
        pictures_of("image", text)


def test_a_size_may_come_with_a_count() -> None:
    assert pictures_of("page", "1240x1754") == Pictures("page", 1240, 1754, 1)
    assert pictures_of("page", "1240x1754x20") == Pictures("page", 1240, 1754, 20)


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="is not a directory"):
        subject.from_directory(tmp_path / "nowhere")
