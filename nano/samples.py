"""Held-out questions, one each, reproducible by seed. Knows pictures and answers; knows no token and no server."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from nano import questions
from nano.pictures import Picture, Style
from nano.questions import DEFAULT_SYSTEM, THINK, Turn
from nano.scenes import shape_scene, text_scene

TASKS = ("number", "word", "colour", "shape", "count", "which", "point", "text", "chat", "think")
WRITTEN = ("number", "word")


@dataclass(frozen=True, slots=True)
class Sample:
    task: str
    system: str
    pictures: tuple[Picture, ...]
    question: str
    answer: str


def draw(task: str, count: int, seed: int, style: Style) -> list[Sample]:
    """The first `count` samples of a task: a longer draw begins with a shorter one."""
    return [sample(task, np.random.default_rng([seed, zlib.crc32(task.encode()), k]), style) for k in range(count)]


def sample(task: str, rng: Generator, style: Style) -> Sample:
    while True:
        pictures, turns = conversation(task, rng, style)
        turns = [turn for turn in turns if turn.task == task or (task == "think" and turn.thought)]
        if turns:
            system = THINK if task == "think" else DEFAULT_SYSTEM
            return Sample(task, system, tuple(pictures), turns[0].question, turns[0].answer)


def conversation(task: str, rng: Generator, style: Style) -> tuple[list[Picture], list[Turn]]:
    if task in ("text", "chat"):
        return [], questions.text_only(rng)
    if task == "which":
        width, height = size(rng, (3, 4), (3, 4))
        pictures = [picture("shapes", width, height, rng, style) for _ in range(int(rng.integers(2, 5)))]
        return pictures, questions.which(pictures, rng)
    kind = "text" if task in WRITTEN or (task == "think" and rng.random() < 0.5) else "shapes"
    one = picture(kind, *size(rng, (3, 4, 5), (3, 4, 5, 6)), rng, style)
    return [one], questions.about(one, rng)


def size(rng: Generator, rows: tuple[int, ...], columns: tuple[int, ...]) -> tuple[int, int]:
    """Width and height in pixels: half of them whole tokens, half padded up to a token."""
    width, height = 28 * int(rng.choice(columns)), 28 * int(rng.choice(rows))
    if rng.random() < 0.5:
        return width, height
    return width - int(rng.integers(0, 28)), height - int(rng.integers(0, 28))


def picture(kind: str, width: int, height: int, rng: Generator, style: Style) -> Picture:
    scene = text_scene if kind == "text" else shape_scene
    while True:
        drawn = scene(width, height, rng, style)
        if drawn.texts or drawn.shapes:
            return drawn
