"""What one request costs in tokens, and whether it fits. Knows geometry; never memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from kimi_serve.errors import ImageError, PlanError
from kimi_serve.inputs.geometry import Geometry
from kimi_serve.plan.options import Options, Pictures
from kimi_serve.plan.subject import Subject, Template

MOST_IMAGES = 512  # a prompt, pages and frames among them: the engine's own limit


@dataclass(frozen=True, slots=True)
class PictureCost:
    pictures: Pictures
    each: int  # tokens of one, with what wraps it
    seen: tuple[int, int]  # pixels across and down that the model sees of one: scaled down, and padded

    @property
    def tokens(self) -> int:
        return self.pictures.count * self.each


@dataclass(frozen=True, slots=True)
class Request:
    template: int  # tokens
    text: int
    pictures: tuple[PictureCost, ...]
    max_tokens: int | None
    context: int

    @property
    def prompt(self) -> int:
        """Equal to the engine's `prompt_tokens`."""
        return self.template + self.text + sum(cost.tokens for cost in self.pictures)

    @property
    def images(self) -> int:
        return sum(cost.pictures.count for cost in self.pictures)

    @property
    def answer(self) -> int:
        """Tokens that the answer may have; below one where the prompt alone is too long."""
        left = self.context - self.prompt
        return left if self.max_tokens is None else min(left, self.max_tokens)

    @property
    def total(self) -> int:
        return self.prompt + (1 if self.max_tokens is None else self.max_tokens)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it does not fit; empty where it does."""
        found = []
        if self.total > self.context:
            asked = f"max_tokens {self.max_tokens}" if self.max_tokens is not None else "one token of answer"
            over = self.total - self.context
            found.append(
                f"the prompt's {self.prompt} tokens and {asked} are {over} more than the context of {self.context}"
            )
        if self.images > MOST_IMAGES:
            found.append(f"{self.images} pictures are more than the {MOST_IMAGES} of one prompt")
        return tuple(found)


def cost(options: Options, subject: Subject) -> Request:
    geometry = subject.checkpoint.image.geometry
    return Request(
        template=subject.template.turns,
        text=options.text,
        pictures=_pictures(options.pictures, geometry, subject.template),
        max_tokens=options.max_tokens,
        context=context(options, subject),
    )


def context(options: Options, subject: Subject) -> int:
    most = subject.checkpoint.model.text.max_position_embeddings
    if options.context is not None and options.context > most:
        raise PlanError(f"--context: {options.context} is more than the model's {most} positions")
    return options.context or most


def _pictures(asked: Sequence[Pictures], geometry: Geometry, template: Template) -> tuple[PictureCost, ...]:
    costs = []
    for pictures in asked:
        size = pictures.width, pictures.height
        try:
            each = geometry.num_tokens(*size) + template.image
            costs.append(PictureCost(pictures, each, geometry.padded(*size)))
        except ImageError as error:
            raise PlanError(f"--{pictures.kind}: {error}") from error
    return tuple(costs)
