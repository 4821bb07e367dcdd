"""The image parts of a chat request, by place, so that an error can name one. Knows parts and sizes; never a token.

Where a route has no field for a picture's uuid, its data URL may hold it: data:image/png;uuid=NAME;base64,DATA. Without
DATA the picture is the one that came under that name before.
"""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import torch
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaWithBytes

from kimi_serve.errors import ImageError
from kimi_serve.inputs.geometry import Geometry
from kimi_serve.model.image_rows import GRIDS, ROWS

SCHEMES = ("http", "https", "data")
NAMED: Final = re.compile(r"(data:[^;,]{0,128});uuid=([0-9A-Za-z_-]{1,128});base64,", re.IGNORECASE)
UNREADABLE = (ValueError, Image.DecompressionBombError)  # what reading a picture from its bytes can end in
# What reading a tensor can end in besides: torch, numpy and pickle each have their own words for broken bytes.
UNREADABLE_ROWS = (*UNREADABLE, RuntimeError, TypeError, LookupError, EOFError, MemoryError, pickle.UnpicklingError)

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ImagePart:
    where: str  # messages[1].content[0]
    part: Mapping[str, Any]

    @property
    def url(self) -> str:
        """Empty where the part repeats an earlier picture by its uuid."""
        value = self.part.get("image_url")
        if isinstance(value, Mapping):
            value = value.get("url")
        return value if isinstance(value, str) else ""

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0].lower()

    @property
    def holds_rows(self) -> bool:
        """Whether a tower's rows stand for the picture."""
        return ROWS in self.part or self.part.get("type") == ROWS

    def refused_reading(self, error: Exception) -> VLLMValidationError:
        """Of rows in the first line of what torch says: the others explain its options."""
        words = str(error).partition("\n")[0][:200]
        return self.refused(f"{ROWS} cannot be read: {words}" if self.holds_rows else error)

    def refused(self, problem: object) -> VLLMValidationError:
        return VLLMValidationError(f"{self.where}: {problem}", parameter=self.where)


def settled(messages: Messages) -> list[dict[str, Any]]:
    """The messages with uuids as fields and lists for contents: vLLM's iterators can be read only once."""
    return [
        dict(message)
        if isinstance(message.get("content"), str | None)
        else {**message, "content": [_named(part) for part in message["content"]]}
        for message in messages
    ]


def _named(part: Any) -> Any:
    """The part as vLLM knows it, where its data URL holds its uuid; its own field wins.

    Only of what is an image already: a uuid beside a text would make it one.
    """
    if not _is_image(part) or not isinstance(part.get("image_url"), Mapping):
        return part
    url = part["image_url"].get("url")
    found = NAMED.match(url) if isinstance(url, str) else None
    if found is None:
        return part
    data = url[found.end() :]
    image = {**part["image_url"], "url": f"{found[1]};base64,{data}"} if data else None
    return {**part, "image_url": image, "uuid": part.get("uuid") or found[2]}


def find(messages: Messages) -> list[ImagePart]:
    """In the order in which vLLM numbers the images."""
    return [
        ImagePart(f"messages[{index}].content[{number}]", part)
        for index, message in enumerate(messages)
        if isinstance(message.get("content"), list)
        for number, part in enumerate(message["content"])
        if _is_image(part)
    ]


def check_urls(parts: Sequence[ImagePart], *, local_files: bool) -> None:
    """Refuse what vLLM would answer with a server error, before anything is fetched."""
    supported = (*SCHEMES, "file") if local_files else SCHEMES
    for part in parts:
        if not part.url:
            if "image_url" in part.part and part.part.get("uuid") is None:
                raise part.refused("image_url is empty; expected a URL, or the uuid of an earlier image")
        elif part.scheme not in supported:
            found = repr(part.scheme[:20]) if ":" in part.url else "without a scheme"
            raise part.refused(f"image_url: {found} is not supported; supported: {', '.join(supported)}")
        elif part.scheme == "data" and not part.url.partition(",")[0].endswith(";base64"):
            raise part.refused("image_url: only base64 data URLs are supported: data:image/png;base64,...")


def check_rows(parts: Sequence[ImagePart]) -> None:
    """Refuse what is no tensor in base64, with or without a grid; vLLM would answer with a server error."""
    for part in parts:
        if not part.holds_rows:
            continue
        given = part.part.get(ROWS)
        if given is None and part.part.get("uuid") is None:
            raise part.refused(f"{ROWS}: is missing; expected a tensor in base64")
        fields = given if isinstance(given, Mapping) else {} if given is None else {ROWS: given}
        for name, value in fields.items():
            if name not in (ROWS, GRIDS):
                raise part.refused(f"{ROWS}.{name:.40}: is not supported; supported: {ROWS}, {GRIDS}")
            if not isinstance(value, str) and not (name == GRIDS and isinstance(value, list)):
                raise part.refused(f"{name}: {type(value).__name__} is not supported; expected a tensor in base64")


def check_images(parts: Sequence[ImagePart], images: Sequence[object], geometry: Geometry) -> None:
    """Refuse an image that is damaged or that the model cannot see, by its place; None stands for a repeated one.

    Rows in place of an image are the processor's to check.
    """
    for part, image in zip(parts, images, strict=True):
        if image is None or isinstance(image, torch.Tensor):
            continue
        try:
            geometry.num_tokens(*image.size)  # type: ignore[attr-defined]  # PIL's, or vLLM's wrapper around it
            _verify(image)
        except ImageError as error:
            raise part.refused(error) from error


def unreadable(parts: Sequence[ImagePart]) -> tuple[type[Exception], ...]:
    """The errors that are the caller's, of these parts."""
    return UNREADABLE_ROWS if any(part.holds_rows for part in parts) else UNREADABLE


def inlined(parts: Sequence[ImagePart]) -> Iterator[ImagePart]:
    """The parts that can be read again without a fetch."""
    return (part for part in parts if part.scheme == "data" or part.holds_rows)


def _verify(image: object) -> None:
    """Check a PNG's sums. vLLM swallows the error of a damaged one and goes on with a black picture."""
    if isinstance(image, MediaWithBytes):
        try:
            with Image.open(BytesIO(image.original_bytes)) as opened:
                opened.verify()
        except (OSError, SyntaxError) as error:  # PIL's words for a broken file
            raise ImageError(f"image cannot be read: {error}") from error


def _is_image(part: object) -> bool:
    """As vLLM judges: by type, or by the key where there is no type or a uuid."""
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    if kind in ("image_url", "input_image", "image_pil", ROWS):
        return True
    by_key = kind is None or part.get("uuid") is not None
    return by_key and any(key in part for key in ("image_url", "image_pil", ROWS))
