"""What a scenario may say. Knows its fields and their limits; sends nothing and draws nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

BUNDLED: Final = Path(__file__).with_name("scenarios.toml")
LARGEST_SIDE: Final = 8192
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=16, le=LARGEST_SIDE)]
Size = tuple[Side, Side]


class ScenarioError(ValueError):
    """A scenario, or what was asked of one, cannot be used."""


class _Told(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Told):
    """A request within both is good; goodput counts these."""

    ttft_s: Seconds
    tpot_s: Seconds


class Cancel(_Told):
    """Clients that leave: which share of them, and when after they asked."""

    share: Share
    after_s: tuple[Annotated[float, Field(ge=0)], Seconds]


class _Part(_Told):
    name: str
    weight: float = Field(default=1.0, gt=0)  # beside the other parts
    words: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (20, 60)
    answer_tokens: int = Field(default=32, ge=1)
    cancel: Cancel | None = None

    @model_validator(mode="after")
    def _words_are_a_range(self) -> _Part:
        if self.words[0] > self.words[1]:
            raise ValueError(f"words: the least, {self.words[0]}, is more than the most, {self.words[1]}")
        return self


class TextPart(_Part):
    kind: Literal["text"]


class ImagesPart(_Part):
    kind: Literal["images"]
    count: int = Field(default=1, ge=1, le=512)
    sizes: tuple[Size, ...] = Field(min_length=1)  # each picture has one of them


class DocumentPart(_Part):
    kind: Literal["document"]
    pages: int = Field(ge=1, le=100)


class VideoPart(_Part):
    kind: Literal["video"]
    size: Size
    seconds: int = Field(ge=1, le=600)
    frames: int = Field(ge=1, le=256)  # that the server is to show


class HistoryPart(_Part):
    """Agents that send their last screenshots with every turn: `reuse` of them came with the turn before."""

    kind: Literal["history"]
    sessions: int = Field(ge=1)
    images: int = Field(ge=2, le=512)
    reuse: float = Field(gt=0, lt=1)
    size: Size

    @property
    def fresh(self) -> int:
        return round(self.images * (1 - self.reuse))

    @model_validator(mode="after")
    def _reuse_is_whole_images(self) -> HistoryPart:
        if self.fresh < 1 or abs(self.images * (1 - self.reuse) - self.fresh) > 1e-6:
            raise ValueError(f"reuse: {self.reuse:g} of {self.images} images is no whole number of them under all")
        return self


Part = Annotated[TextPart | ImagesPart | DocumentPart | VideoPart | HistoryPart, Field(discriminator="kind")]


class Scenario(_Told):
    about: str
    rate: float | None = Field(default=None, gt=0)  # requests a second
    of_capacity: float | None = Field(default=None, gt=0)  # instead: times what was measured
    process: Literal["poisson", "constant"] = "poisson"
    seconds: Seconds
    timeout_s: Seconds = 120.0  # for one request; then it has failed
    seed: int = 1
    ignore_eos: bool = True  # answers as long as asked for; vLLM's own field
    limits: Limits
    parts: tuple[Part, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_one_rate(self) -> Scenario:
        if (self.rate is None) == (self.of_capacity is None):
            raise ValueError("rate, of_capacity: exactly one of the two is expected")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Scenario:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"parts: each needs a name of its own, not {', '.join(names)}")
        return self

    def offered(self, capacity: float | None) -> float:
        """Requests a second, where capacity is how many of them the server was seen to answer within the limits."""
        if self.rate is not None:
            return self.rate
        assert self.of_capacity is not None
        if capacity is None:
            raise ScenarioError(
                f"of_capacity: {self.of_capacity:g} times a capacity that is not known; measure it with "
                "`python -m benchmarks.load capacity`, or give --capacity or --rate"
            )
        return self.of_capacity * capacity


def read(name: str, file: Path = BUNDLED) -> Scenario:
    """Raises ScenarioError for a name that the file does not have, and for a scenario that is malformed."""
    told = tomllib.loads(file.read_text())
    if name not in told:
        raise ScenarioError(f"scenario: {name!r} is not one of {', '.join(told)}")
    try:
        return Scenario.model_validate(told[name])
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ScenarioError(f"{file.name}, {name}: {problems}") from None


def names(file: Path = BUNDLED) -> list[str]:
    return list(tomllib.loads(file.read_text()))
