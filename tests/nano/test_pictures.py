"""Pictures tell the truth about themselves, and the splits share nothing. Pillow's own font: no package needed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nano import questions
from nano.fonts import HELD_OUT, TRAINING
from nano.labels import CHARACTERS, label, patchify
from nano.pictures import (
    HELD_OUT_BACKGROUNDS,
    HELD_OUT_FONT_SIZES,
    HELD_OUT_RADII,
    HELD_OUT_SHADES,
    TRAINING_BACKGROUNDS,
    Picture,
    Style,
)
from nano.samples import TASKS, draw
from nano.scenes import lexicon, page_scene, shape_scene, text_scene

OWN_FONT = ("",)
TRAIN, TEST = Style(OWN_FONT, held_out=False), Style(OWN_FONT, held_out=True)


def scenes(style: Style, count: int = 30) -> list[Picture]:
    return [shape_scene(112, 84, np.random.default_rng(k), style) for k in range(count)]


def test_same_seed_draws_the_same_picture() -> None:
    a, b = (text_scene(112, 84, np.random.default_rng(7), TRAIN) for _ in range(2))
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert (a.texts, a.shapes) == (b.texts, b.shapes)


@pytest.mark.parametrize("task", TASKS)
def test_longer_draw_begins_with_the_shorter_one(task: str) -> None:
    short, long = draw(task, 2, 1, TEST), draw(task, 4, 1, TEST)
    assert [(s.question, s.answer) for s in short] == [(s.question, s.answer) for s in long[:2]]


def test_counts_asked_equal_the_shapes_drawn() -> None:
    for seed, picture in enumerate(scenes(TRAIN)):
        for turn in questions.about(picture, np.random.default_rng(seed)):
            if turn.question == "How many shapes are there?":
                assert int(turn.answer) == len(picture.shapes) <= 6


def test_points_asked_lie_inside_the_shape_named() -> None:
    asked = 0
    for seed, picture in enumerate(scenes(TRAIN)):
        for turn in questions.about(picture, np.random.default_rng(seed)):
            if turn.task != "point":
                continue
            named = re.fullmatch(r"Click the (\w+) (\w+)\.", turn.question)
            given = re.fullmatch(r"pyautogui\.click\(x=(0\.\d\d), y=(0\.\d\d)\)", turn.answer)
            assert named, turn.question
            assert given, turn.answer
            x, y = float(given[1]) * picture.width, float(given[2]) * picture.height
            near = [s for s in picture.shapes if np.hypot(s.x - x, s.y - y) < s.radius]
            assert [(s.colour, s.kind) for s in near] == [named.groups()]
            asked += 1
    assert asked > 10


def test_shape_shows_its_colour_at_its_centre() -> None:
    for picture in scenes(TRAIN):
        for shape in picture.shapes:
            r, g, b = (int(v) for v in picture.pixels[int(shape.y), int(shape.x)])
            if shape.colour == "red":
                assert r > 2 * max(g, b)
            if shape.colour == "blue":
                assert b > max(r, g)


def test_which_image_shows_it_and_no_other_does() -> None:
    for s in draw("which", 20, 3, TEST):
        named = re.fullmatch(r"Which image shows a (\w+) (\w+)\?", s.question)
        assert named, s.question
        having = [k for k, p in enumerate(s.pictures, 1) if named.groups() in {(x.colour, x.kind) for x in p.shapes}]
        assert [f"Image {k}" for k in having] == [s.answer]


def test_labels_put_every_character_in_its_token() -> None:
    for seed in range(20):
        picture = text_scene(112, 84, np.random.default_rng(seed), TRAIN)
        marked = label(picture, 3, 4)["character"]
        found = sorted(CHARACTERS[k - 1] for k in marked[marked > 0])
        printed = sorted(c for text in picture.texts for c in text.content)
        assert set(found) <= set(printed)
        assert len(found) >= len(printed) - 2  # two narrow letters may share half a token


def test_a_page_is_read_in_lines() -> None:
    """The lines described are the texts and shapes of the page, those further down later."""
    for seed in range(20):
        picture = page_scene(140, 112, np.random.default_rng(seed), TRAIN)
        heights = {t.content: t.centres[0][1] for t in picture.texts}
        lines = questions.describe(picture, np.random.default_rng(0)).answer.split("\n")
        assert len(lines) == len(picture.texts) + len(picture.shapes) > 1
        rows = [int(heights[line]) // 28 for line in lines if line in heights]
        assert len(set(heights)) < len(picture.texts) or rows == sorted(rows)


def test_patches_equal_the_image_processors() -> None:
    """The pictures in training and on the server are cut the same way."""
    from PIL import Image

    from kimi_serve.inputs.config import parse_image_config
    from kimi_serve.inputs.image_processor import ImageProcessor
    from nano.export import preprocessing

    pixels = np.random.default_rng(0).integers(0, 256, (71, 99, 3)).astype(np.uint8)
    served = ImageProcessor(parse_image_config(preprocessing()))(Image.fromarray(pixels))
    np.testing.assert_array_equal(served.patches, patchify(pixels))


def test_no_font_word_background_or_size_is_in_both_splits() -> None:
    assert not set(TRAINING) & set(HELD_OUT)
    assert not set(lexicon(held_out=False)) & set(lexicon(held_out=True))
    assert not set(TRAINING_BACKGROUNDS) & set(HELD_OUT_BACKGROUNDS)
    rng = np.random.default_rng(0)
    for style in (TRAIN, TEST):
        assert {style.font_size(rng, 36) in HELD_OUT_FONT_SIZES for _ in range(200)} == {style.held_out}
        assert {style.radius(rng, 24) in HELD_OUT_RADII for _ in range(200)} == {style.held_out}
        assert {int(style.shade(rng) * 10) in HELD_OUT_SHADES for _ in range(200)} == {style.held_out}


def test_training_shapes_never_stand_on_held_out_positions() -> None:
    for picture in scenes(TRAIN):
        assert not any(TEST.may_stand(s.x, s.y) for s in picture.shapes)
