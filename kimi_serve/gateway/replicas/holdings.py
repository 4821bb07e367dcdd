"""What one replica's caches are believed to hold. Knows hashes and tokens; never asks the replica.

Both memories are bounded in tokens and forget what was used longest ago, as the engine's own caches do. They may be
wrong either way: a wrong guess costs a prefill, or an image sent once more, and never an answer.
"""

from collections import OrderedDict
from collections.abc import Iterable

from kimi_serve.gateway.replicas.prompt import Prompt


class Holdings:
    def __init__(self, prefix_tokens: int, image_tokens: int) -> None:
        self._blocks = _Memory(prefix_tokens)
        self._images = _Memory(image_tokens)

    def prefix_tokens(self, prompt: Prompt) -> int:
        """Tokens at the prompt's beginning that need no prefill.

        A block is never forgotten before those that continue it, because `remember` touches it after them: so what is
        held is a beginning without holes, and its end can be bisected.
        """
        low, high = 0, len(prompt.hashes)
        while low < high:
            middle = (low + high) // 2
            if prompt.hashes[middle] in self._blocks:
                low = middle + 1
            else:
                high = middle
        return prompt.ends[low - 1] if low else 0

    def image_tokens(self, prompt: Prompt, prefix_tokens: int) -> int:
        """Tokens of images that need not be encoded: remembered, or within the prefix that is held."""
        return sum(
            picture.tokens for picture, end in prompt.pictures if end <= prefix_tokens or picture.hash in self._images
        )

    def holds_image(self, image: bytes) -> bool:
        return image in self._images

    def remember_prefix(self, prompt: Prompt) -> None:
        sizes = [end - start for start, end in zip((0, *prompt.ends), prompt.ends, strict=False)]
        self._blocks.remember(reversed(list(zip(prompt.hashes, sizes, strict=True))))

    def remember_images(self, prompt: Prompt) -> None:
        self._images.remember((picture.hash, picture.tokens) for picture, _ in prompt.pictures)

    def forget_images(self, images: Iterable[bytes]) -> None:
        """The engine said that it does not have one of them, or nothing is known of it any more."""
        for image in images:
            self._images.forget(image)

    def resize_images(self, tokens: int) -> None:
        self._images.resize(tokens)

    def clear(self) -> None:
        """The engine has started anew."""
        self._blocks.clear()
        self._images.clear()


class _Memory:
    def __init__(self, capacity: int) -> None:
        self._capacity, self._total = capacity, 0
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # used longest ago first

    def __contains__(self, key: bytes) -> bool:
        return key in self._sizes

    def remember(self, items: Iterable[tuple[bytes, int]]) -> None:
        for key, size in items:
            size = max(1, size)  # nothing is free, so their number is bounded too
            self._total += size - self._sizes.pop(key, 0)
            self._sizes[key] = size
        self._shrink()

    def resize(self, capacity: int) -> None:
        self._capacity = capacity
        self._shrink()

    def forget(self, key: bytes) -> None:
        self._total -= self._sizes.pop(key, 0)

    def clear(self) -> None:
        self._sizes.clear()
        self._total = 0

    def _shrink(self) -> None:
        while self._total > self._capacity:
            _, size = self._sizes.popitem(last=False)
            self._total -= size
