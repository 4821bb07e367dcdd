"""A file of conversations as token ids and patches. Knows JSON lines, chats and pictures; never a weight.

A line is {"messages": [...]} as a chat request has them, or {"text": "..."}. A picture's URL is data:... or a path from
the file's own folder.
"""

import base64
import binascii
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kimi_serve.errors import ChatError, ImageError, QuantizeError
from kimi_serve.inputs.chat import render
from kimi_serve.inputs.config import Checkpoint
from kimi_serve.inputs.image_processor import ImagePatches, ImageProcessor
from kimi_serve.inputs.tokenizer import Tokenizer

MOST_TOKENS = 16_384  # of all lines together: their hidden states are in memory at once


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: tuple[int, ...]
    pictures: tuple[ImagePatches, ...]
    answer: int = 0  # how many of the last ids are the last turn's answer; 0: there is none


@dataclass(frozen=True, slots=True)
class Prompts:
    """What was read of the file, and a hash of all that it depends on."""

    prompts: tuple[Prompt, ...]
    sha256: str

    @property
    def tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)


def read(path: Path, option: str, source: Path, checkpoint: Checkpoint) -> Prompts:
    """Raise QuantizeError naming the option, the line and what is wrong with it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise QuantizeError(f"{option}: {path} cannot be read: {error}") from error
    tokenizer = Tokenizer.from_directory(source, vocab_size=checkpoint.model.text.vocab_size)
    processor = ImageProcessor(checkpoint.image)
    prompts, digest = [], hashlib.sha256()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = _prompt(json.loads(line), path.parent, tokenizer, processor, checkpoint)
        except (ValueError, OSError) as error:  # JSON, chats, pictures
            raise QuantizeError(f"{option}: {path}, line {number}: {error}") from error
        prompts.append(prompt)
        digest.update(json.dumps(prompt.ids).encode())
        digest.update(b"".join(picture.patches.tobytes() for picture in prompt.pictures))
    read_all = Prompts(tuple(prompts), digest.hexdigest())
    if not 1 <= read_all.tokens <= MOST_TOKENS:
        raise QuantizeError(f"{option}: {path} has {read_all.tokens} tokens; expected 1 to {MOST_TOKENS}")
    return read_all


def _prompt(
    line: object, folder: Path, tokenizer: Tokenizer, processor: ImageProcessor, checkpoint: Checkpoint
) -> Prompt:
    if isinstance(line, Mapping) and isinstance(line.get("text"), str):
        return Prompt(tuple(tokenizer.encode(line["text"])), ())
    if not isinstance(line, Mapping) or not isinstance(line.get("messages"), list):
        raise ChatError('expected {"messages": [...]} or {"text": "..."}')
    messages = line["messages"]
    answered = bool(messages) and isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant"
    ids = render(messages, tokenizer, add_generation_prompt=not answered)
    answer = len(ids) - len(render(messages[:-1], tokenizer)) if answered and len(messages) > 1 else 0
    pictures = [processor(_open(url, folder)) for url in _urls(messages)]
    return Prompt(tuple(_expanded(ids, pictures, checkpoint)), tuple(pictures), answer)


def _expanded(ids: Sequence[int], pictures: Sequence[ImagePatches], checkpoint: Checkpoint) -> Iterator[int]:
    """Repeat each placeholder as often as its picture has tokens."""
    down, across = checkpoint.model.vision.merge_kernel_size
    following = iter(pictures)
    for token in ids:
        if token != checkpoint.model.media_placeholder_token_id:
            yield token
        else:
            yield from [token] * (next(following).grid.num_patches // (down * across))


def _urls(messages: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Pictures in the order in which `render` makes their placeholders; it has judged the rest."""
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if "text" in part and part.get("type") not in ("image", "image_url", "input_image"):
                continue
            url = next((part[key] for key in ("image_url", "image", "input_image") if key in part), None)
            url = url.get("url") if isinstance(url, Mapping) else url
            if not isinstance(url, str):
                raise ImageError("a picture has no URL; expected image_url: {url: ...}")
            yield url


def _open(url: str, folder: Path) -> Image.Image:
    if url.startswith(("http:", "https:")):
        raise ImageError(f"picture {url:.60}: nothing is fetched here; use a path or a data URL")
    if not url.startswith("data:"):
        return Image.open(folder / url)
    try:
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2], validate=True)))
    except binascii.Error as error:
        raise ImageError(f"picture {url:.40}: is not base64: {error}") from error
