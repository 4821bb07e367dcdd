"""What a request costs: tokens, pixels and bytes, and what they weigh. Knows counts; never a price or a tenant."""

from dataclasses import dataclass
from typing import Final


def encoding(image_tokens: int) -> int:
    """What the vision tower does for these image tokens, in tokens that the decoder reads.

    MoonViT spends 2 * 411 M operations a patch and 4 patches an image token: 3.3 G. The decoder, with 2.8 B active
    parameters, spends 5.6 G a token. 3.3 / 5.6 is three fifths; a measurement may correct it here, and only here.
    """
    return image_tokens * 3 // 5


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate before, what was used after: one value for the limits of keys, for the queue and for engines."""

    text_tokens: int = 0  # of the prompt
    image_tokens: int = 0
    output_tokens: int = 0  # at most so many: max_tokens before, the engine's usage after
    pixels: int = 0
    bytes: int = 0
    requests: int = 1

    @property
    def tokens(self) -> int:
        """All of them: what limits and budgets count."""
        return self.text_tokens + self.image_tokens + self.output_tokens

    @property
    def weight(self) -> int:
        """One number for fairness and load, in text tokens. Nothing is free: at least 1.

        Pixels and bytes have limits of their own; an image's size is already in its tokens.
        """
        return max(1, self.tokens + encoding(self.image_tokens))


NOTHING: Final = Cost(requests=0)  # what a request used that never reached an engine
