"""The golden pack's language cases as requests and expectations. Knows files; never an engine."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

PACK = Path(__file__).parents[1] / "golden"
VOCAB = 1280
PLACEHOLDER = 1045
STEPS = 16  # of every greedy continuation

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    prompt: list[int]  # whole: placeholders already repeated
    image_paths: list[Path]
    image_tokens: list[int]
    npz: Path

    @property
    def short_prompt(self) -> list[int]:
        """One placeholder an image, as a request states it."""
        return list(_one_placeholder_each(self.prompt, iter(self.image_tokens)))

    def images(self) -> list[Image.Image]:
        return [Image.open(path) for path in self.image_paths]

    def arrays(self) -> Arrays:
        with np.load(self.npz) as file:
            return dict(file)

    def image_spans(self) -> list[range]:
        """Where each image's placeholders lie in the whole prompt."""
        spans, start = [], 0
        for tokens in self.image_tokens:
            start = self.prompt.index(PLACEHOLDER, start)
            spans.append(range(start, start + tokens))
            start += tokens
        return spans


@cache
def cases() -> dict[str, Case]:
    listed = json.loads((PACK / "cases.json").read_text(encoding="utf-8"))["language_cases"]
    found = {}
    for raw in listed:
        with np.load(PACK / raw["npz"]) as file:
            prompt = file["input_ids"].tolist()
        found[raw["id"]] = Case(
            raw["id"],
            prompt,
            [PACK / path for path in raw.get("images", [])],
            raw.get("image_tokens", []),
            PACK / raw["npz"],
        )
    return found


def names() -> list[str]:
    return list(cases())


def shorter() -> list[Case]:
    """All but the longest text, which takes longer than the others together."""
    return [case for case in cases().values() if len(case.prompt) < 1000]


def names_with_images() -> list[str]:
    return [name for name, case in cases().items() if case.image_paths]


def _one_placeholder_each(prompt: list[int], sizes: Iterator[int]) -> Iterator[int]:
    index = 0
    while index < len(prompt):
        yield prompt[index]
        index += next(sizes) if prompt[index] == PLACEHOLDER else 1
