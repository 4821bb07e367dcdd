"""How many more pictures, and how many tokens of them, a prompt can take. Knows counts; refuses before the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kimi_serve.gateway.prompt_cost import Meter
from kimi_serve.protocol.errors import ApiError


class Taken(NamedTuple):
    """What one file's pictures needed, as it was asked for."""

    sizes: Sequence[tuple[int, int]]
    what: str
    instead: str


@dataclass(slots=True)
class Room:
    meter: Meter
    images: int  # that may still come
    tokens: int | None = None  # of images; None: nobody minds
    last: Taken | None = None

    def take(self, sizes: Sequence[tuple[int, int]], what: str, instead: str) -> None:
        """Raises ApiError where pictures of these sizes cannot be part of the prompt, whatever else is in it."""
        if len(sizes) > self.images:
            message = f"has {len(sizes)} {what} to show, and the prompt may hold {self.images} more images: {instead}"
            raise ApiError("too_many_images", message)
        tokens = sum(self.meter.geometry.num_tokens(*size) for size in sizes)
        if self.tokens is not None and tokens > self.tokens:
            message = (
                f"has {len(sizes)} {what} to show, of {tokens} tokens, and the model's limit leaves {self.tokens} "
                f"for them: {instead}"
            )
            raise ApiError("context_length_exceeded", message)
        self.last = Taken(sizes, what, instead)
        self.images -= len(sizes)
        if self.tokens is not None:
            self.tokens -= tokens
