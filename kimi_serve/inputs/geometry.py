"""Image geometry: how many tokens an image costs. Knows integers; never sees a pixel, numpy or torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from kimi_serve.errors import ConfigError, ImageError
from kimi_serve.inputs.fields import Fields

# The vision tower's 2-D rotary table has 512 x 512 positions, and the published processor refuses a side of 512.
SIDE_LIMIT = 512  # patches


@dataclass(frozen=True, slots=True)
class Grid:
    """Patches down and across one image."""

    height: int
    width: int

    @property
    def num_patches(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Geometry:
    """From an image's size in pixels to its grid of patches and its tokens: the only copy of the formula.

    An image with more than `in_token_limit` whole patches is scaled down, then padded on the right and at the bottom
    to whole tokens of merge_height x merge_width patches. Never scaled up.
    """

    patch_size: int  # pixels
    merge_height: int  # patches
    merge_width: int
    in_token_limit: int  # patches before merging, in spite of the name that checkpoints give it

    def __post_init__(self) -> None:
        limits = {"patch_size": None, "merge_height": SIDE_LIMIT - 1, "merge_width": SIDE_LIMIT - 1}
        for name, limit in (limits | {"in_token_limit": None}).items():
            value = getattr(self, name)
            if value < 1 or (limit is not None and value > limit):
                upper = f" and at most {limit}" if limit is not None else ""
                raise ConfigError(f"{name}: {value} is not supported; expected at least 1{upper}")

    @classmethod
    def from_preprocessor_config(cls, raw: Mapping[str, object]) -> Self:
        """Read preprocessor_config.json. An absent key has the default of the published processor *class*."""
        fields = Fields("preprocessor_config.json", raw)
        # Without padding the published code crops to whole patches, and an odd number of them cannot be merged.
        fields.only("pad_input", True, absent=False)
        merge_height, merge_width = fields.pair("merge_kernel_size", absent=(2, 2))
        return cls(
            patch_size=fields.integer("patch_size", at_least=1, absent=14),
            merge_height=merge_height,
            merge_width=merge_width,
            in_token_limit=fields.integer("in_token_limit", at_least=1, absent=4096),
        )

    @property
    def token_width(self) -> int:
        """Pixels that one token spans across."""
        return self.patch_size * self.merge_width

    @property
    def token_height(self) -> int:
        """Pixels that one token spans down."""
        return self.patch_size * self.merge_height

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The size after scaling down to the limit: whole patches are counted, so a side under one patch counts 0."""
        if width < 1 or height < 1:
            raise ImageError(f"image size {width}x{height}: both sides must be at least 1 pixel")
        patches = (width // self.patch_size) * (height // self.patch_size)
        if patches <= self.in_token_limit:
            return width, height
        scale = math.sqrt(self.in_token_limit / patches)
        new_width, new_height = int(width * scale), int(height * scale)
        if new_width < 1 or new_height < 1:
            raise ImageError(
                f"image size {width}x{height}: too thin; scaled down to {self.in_token_limit} patches "
                f"a side has less than 1 pixel"
            )
        return new_width, new_height

    def padded(self, width: int, height: int) -> tuple[int, int]:
        """The size after scaling down and padding: what the model sees."""
        new_width, new_height = self.resized(width, height)
        across, down = -(-new_width // self.token_width), -(-new_height // self.token_height)  # tokens
        if max(across * self.merge_width, down * self.merge_height) >= SIDE_LIMIT:
            raise ImageError(
                f"image size {width}x{height}: too long; it is {across * self.merge_width}x{down * self.merge_height} "
                f"patches of {self.patch_size} pixels, and a side must stay under {SIDE_LIMIT} (Exceed pos emb)"
            )
        return across * self.token_width, down * self.token_height

    def grid(self, width: int, height: int) -> Grid:
        """The image's patches, before merging."""
        new_width, new_height = self.padded(width, height)
        return Grid(new_height // self.patch_size, new_width // self.patch_size)

    def num_tokens(self, width: int, height: int) -> int:
        """Placeholders of one image in the prompt; the four tokens that wrap an image are not counted."""
        grid = self.grid(width, height)
        return (grid.height // self.merge_height) * (grid.width // self.merge_width)

    def largest(self, width: float, height: float, *, tokens: int, scale: float) -> tuple[int, int]:
        """The largest size of this shape, at most `scale` times as large, that costs at most so many tokens.

        It is not scaled down by the model: with k patches a token, x * y tokens hold at most kkxy whole patches.
        """
        most = max(1, min(tokens, self.in_token_limit // (self.merge_width * self.merge_height)))
        longest = (SIDE_LIMIT - 1) // self.merge_width, (SIDE_LIMIT - 1) // self.merge_height
        fits = max(
            min(self.token_width * across / width, self.token_height * min(most // across, longest[1]) / height)
            for across in range(1, min(most, longest[0]) + 1)
        )
        factor = min(scale, fits)
        return max(1, int(width * factor)), max(1, int(height * factor))

    def max_tokens(self) -> int:
        """An upper bound on num_tokens over every image that is accepted: 1338 at a limit of 4096, 4464 at 16384.

        Both are attained (6733x153 and 7083x489 pixels). in_token_limit / 4 is not a bound: partial patches are not
        counted against the limit, but they are padded to whole tokens. Proof: for each number of tokens across there
        is a most number down, in each of the two cases below, and the sides are bounded by SIDE_LIMIT. Notation: an
        image has a whole patches across and b down, so it is under p(a + 1) and p(b + 1) pixels, p the patch size.
        """
        across = range(1, (SIDE_LIMIT - 1) // self.merge_width + 1)
        return max(x * max(self._tallest_unscaled(x), self._tallest_scaled(x)) for x in across)

    def _tallest_unscaled(self, across: int) -> int:
        """Return the most tokens down of an image that is not scaled, `across` tokens wide.

        With k patches per token, more than pk(across - 1) pixels are at least k(across - 1) whole patches, so b is at
        most limit / that (anything, where that is 0: slivers are never scaled), and b patches pad to b // k + 1 tokens.
        """
        columns = self.merge_width * (across - 1)
        longest = (SIDE_LIMIT - 1) // self.merge_height
        return min(longest, self.in_token_limit // columns // self.merge_height + 1) if columns else longest

    def _tallest_scaled(self, across: int) -> int:
        """Return the most tokens down of an image scaled by s = sqrt(limit / ab) < 1, `across` tokens wide.

        Its scaled width w lies in pk(across - 1) + 1 .. pk across. From w <= s(pa + p - 1): as >= (k(across - 1) +
        1/p) / (1 + (p - 1)/pa), and a >= k(across - 1) since s < 1. From w > pas - 1: as < k across + 1/p. With
        as * bs = limit the first bounds bs from above, the second b > bs from below; the height is at most
        s(pb + p - 1) = p bs (1 + (p - 1)/pb). The last factor covers rounding in the square root.
        """
        p, k = self.patch_size, self.merge_width
        columns = max(1, k * (across - 1))
        rows = int(self.in_token_limit / (k * across + 1 / p)) + 1
        scaled_rows = self.in_token_limit * (1 + (p - 1) / (p * columns)) / (k * (across - 1) + 1 / p)
        pixels = int(p * scaled_rows * (1 + (p - 1) / (p * rows)) * (1 + 1e-9))
        return min((SIDE_LIMIT - 1) // self.merge_height, -(-pixels // self.token_height))
