"""What becomes of a request's pictures so that it fits. Knows sizes and counts; never a pixel, a message or a setting.

Every count is inputs.geometry's; text is counted by whoever asks. Pure: the same numbers give the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from kimi_serve.errors import ImageError
from kimi_serve.inputs.geometry import Geometry

Fit = Literal["error", "downscale", "elide_oldest"]
FITS: Final[tuple[Fit, ...]] = get_args(Fit)
STEPS: Final = 256  # factors are whole 256ths: a history that grows a little keeps its factor, and engines their caches
Size = tuple[int, int]  # width, height


@dataclass(frozen=True, slots=True)
class Picture:
    size: Size
    tokens: int
    most: int | None  # tokens that its detail allows; None: as many as it has
    may_go: bool  # whether a marker may take its place


@dataclass(frozen=True, slots=True)
class Bounds:
    room: int  # tokens for text and pictures
    floor: int  # tokens that `downscale` leaves every picture that has them
    marker: int  # tokens of text that a marker has more than what stands around a picture


@dataclass(frozen=True, slots=True)
class Plan:
    sizes: tuple[Size | None, ...]  # what every picture becomes; None: a marker
    tokens: tuple[int, ...]  # of each; a marker's are text
    text_tokens: int
    steps: int  # the factor on the pictures' tokens, in STEPS
    fits: bool  # False: this is the most that could be done, and not enough

    @property
    def total(self) -> int:
        return self.text_tokens + sum(self.tokens)

    @property
    def left_out(self) -> frozenset[int]:
        return frozenset(index for index, size in enumerate(self.sizes) if size is None)


def decide(
    fit: Fit, pictures: Sequence[Picture], geometry: Geometry, bounds: Bounds, text: Callable[[frozenset[int]], int]
) -> Plan:
    """`text`: the exact tokens of everything but the pictures, with a marker in place of those given.

    Each detail counts always. What fits then is left as it is, and so is everything where `fit` is `error`.
    """
    allowed = [_within(geometry, one.size, one.tokens, one.most) for one in pictures]
    plan = _plan(allowed, text(frozenset()), bounds.room)
    if plan.fits or fit == "error":
        return plan
    if fit == "downscale":
        return _downscale(pictures, plan, geometry, bounds)
    return _leave_out(pictures, plan, bounds, text)


def shrunk(geometry: Geometry, size: Size, most: int) -> Size:
    """The largest size of the same shape that costs at most `most` tokens and that the engine leaves as it is.

    The longer side is a whole number of pixels, the shorter one rounded. More pixels never cost less up to the limit at
    which the engine scales pictures itself, so halving finds it.
    """
    longer = max(size)
    low, high = 1, longer + 1  # one pixel always fits
    while high - low > 1:
        middle = (low + high) // 2
        if _costs_at_most(geometry, _scaled(size, middle), most):
            low = middle
        else:
            high = middle
    return _scaled(size, low)


def _scaled(size: Size, longer: int) -> Size:
    most = max(size)
    width, height = ((2 * side * longer + most) // (2 * most) for side in size)
    return max(1, width), max(1, height)


def _costs_at_most(geometry: Geometry, size: Size, most: int) -> bool:
    try:
        return geometry.resized(*size) == size and geometry.num_tokens(*size) <= most
    except ImageError:  # too long, which a smaller one need not be
        return False


def _within(geometry: Geometry, size: Size, tokens: int, most: int | None) -> tuple[Size, int]:
    if most is None or tokens <= most:
        return size, tokens
    smaller = shrunk(geometry, size, most)
    return smaller, geometry.num_tokens(*smaller)


def _plan(found: Sequence[tuple[Size | None, int]], text: int, room: int, steps: int = STEPS) -> Plan:
    tokens = tuple(count for _, count in found)
    return Plan(tuple(size for size, _ in found), tokens, text, steps, text + sum(tokens) <= room)


def _downscale(pictures: Sequence[Picture], start: Plan, geometry: Geometry, bounds: Bounds) -> Plan:
    """One factor on the tokens of all, the largest that fits; none goes below the floor, or its own tokens."""
    known: dict[tuple[Size, int], tuple[Size, int]] = {}

    def one(picture: Picture, tokens: int, steps: int) -> tuple[Size, int]:
        most = max(min(tokens, bounds.floor), tokens * steps // STEPS)
        key = picture.size, min(picture.tokens, most)
        if key not in known:
            known[key] = _within(geometry, picture.size, picture.tokens, most)
        return known[key]

    def at(steps: int) -> Plan:
        found = [one(picture, tokens, steps) for picture, tokens in zip(pictures, start.tokens, strict=True)]
        return _plan(found, start.text_tokens, bounds.room, steps)

    best, low, high = at(0), 0, STEPS
    while best.fits and high - low > 1:
        plan = at((low + high) // 2)
        if plan.fits:
            best, low = plan, plan.steps
        else:
            high = plan.steps
    return best


def _leave_out(pictures: Sequence[Picture], start: Plan, bounds: Bounds, text: Callable[[frozenset[int]], int]) -> Plan:
    """The fewest of the oldest: one less does not fit. One that costs no more than its marker stays."""
    tokens = start.tokens
    going = [index for index, one in enumerate(pictures) if one.may_go and tokens[index] > bounds.marker]

    def without(count: int) -> Plan:
        gone = frozenset(going[:count])
        found = [(None, 0) if index in gone else (size, tokens[index]) for index, size in enumerate(start.sizes)]
        return _plan(found, text(gone), bounds.room)

    over, guess = start.total - bounds.room, 0
    while over > 0 and guess < len(going):
        over -= tokens[going[guess]] - bounds.marker
        guess += 1
    return _fewest(without, len(going), guess) or without(len(going))


def _fewest(plan: Callable[[int], Plan], most: int, guess: int) -> Plan | None:
    """Of 1 to `most`, the count whose plan fits where that of one less does not. A good guess needs two looks."""
    best, low, high, probe = None, 0, most + 1, guess
    is_first = True
    while high - low > 1:
        probe = min(max(probe, low + 1), high - 1)
        found = plan(probe)
        if found.fits:
            best, high = found, probe
        else:
            low = probe
        beside = high - 1 if found.fits else low + 1
        probe = beside if is_first else (low + high) // 2
        is_first = False
    return best
