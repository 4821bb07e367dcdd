"""The pictures that the fake engine knows by name, as vLLM's cache does. Knows where a body has them; never a pixel."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

_NAMED: Final = re.compile(r";uuid=([0-9A-Za-z_-]+)\Z")


class ImageMemory:
    """The last names that came with bytes."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()

    def receive(self, body: bytes, capacity: int) -> str | None:
        """vLLM's refusal where a picture came by its name alone and is not remembered; it then takes in none."""
        pictures = list(_pictures(json.loads(body)))
        self._shrink(capacity)
        for index, (name, has_bytes) in enumerate(pictures):
            if not has_bytes and name not in self._names:
                return f"Cache miss for image at index {index} but data is not provided."
        for name, _ in pictures:
            if name is not None:
                self._names[name] = None
                self._names.move_to_end(name)
        self._shrink(capacity)
        return None

    def forget(self) -> None:
        self._names.clear()

    def _shrink(self, capacity: int) -> None:
        while len(self._names) > capacity:
            self._names.popitem(last=False)


def _pictures(value: object) -> Iterator[tuple[str | None, bool]]:
    """(name, whether its bytes came too), in the order of the body."""
    if isinstance(value, list):
        for one in value:
            yield from _pictures(one)
    elif isinstance(value, dict):
        source = value.get("source")
        if "image_url" in value:
            url = value["image_url"]
            yield value.get("uuid"), bool(url.get("url") if isinstance(url, dict) else url)
        elif isinstance(source, dict) and "media_type" in source:
            named = _NAMED.search(source["media_type"])
            yield named[1] if named else None, bool(source.get("data"))
        else:
            for one in value.values():
                yield from _pictures(one)
