"""What a prompt costs, to the token, before any engine sees it. Knows ids and sizes in pixels; no request, no queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kimi_serve.errors import ChatError, ConfigError, ImageError
from kimi_serve.inputs import chat
from kimi_serve.inputs.geometry import Geometry
from kimi_serve.inputs.tokenizer import Tokenizer
from kimi_serve.protocol import settled
from kimi_serve.protocol.errors import ApiError, kind_of, short

OPTIONS = ("add_generation_prompt", "continue_final_message")


@dataclass(frozen=True, slots=True)
class PromptCost:
    text_tokens: int  # everything but the images' own tokens: what wraps them counts here
    image_tokens: tuple[int, ...]  # of every image, in order
    pixels: int

    @property
    def tokens(self) -> int:
        """Equal to the engine's `prompt_tokens`."""
        return self.text_tokens + sum(self.image_tokens)


@dataclass(frozen=True, slots=True)
class Meter:
    """The checkpoint's own tokenizer, template and geometry."""

    tokenizer: Tokenizer
    geometry: Geometry

    @classmethod
    def from_directory(cls, directory: Path) -> Meter:
        """Needs tiktoken.model, tokenizer_config.json and preprocessor_config.json; no weights."""
        file = directory / "preprocessor_config.json"
        try:
            raw = msgspec.json.decode(file.read_bytes(), type=dict[str, object])
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"{file}: cannot be read: {error}") from error
        return cls(Tokenizer.from_directory(directory), Geometry.from_preprocessor_config(raw))

    def ids(self, body: Mapping[str, object]) -> list[int]:
        """A chat request's prompt, one placeholder an image."""
        messages, tools = body["messages"], body.get("tools")
        assert isinstance(messages, Sequence)
        if tools is not None and not isinstance(tools, list):
            raise ApiError("invalid_value", "tools: expected a list of tools", param="tools")
        try:
            return chat.render(
                settled.messages(messages),
                self.tokenizer,
                tools=settled.tools(tools) if tools else None,  # type: ignore[arg-type]  # the template looks at each
                **_options(body),
            )
        except ChatError as error:
            raise ApiError("invalid_value", str(error), param="messages") from error

    def text(self, body: Mapping[str, object], images: int) -> int:
        """The tokens of everything but the images' own."""
        return len(self.ids(body)) - images

    def extra(self, text: str) -> int:
        """The tokens that a text alone has more than what stands around an image in its place."""
        plain, shown = ({"messages": [{"role": "user", "content": [part]}]} for part in _parts(text))
        return self.text(plain, 0) - self.text(shown, 1)

    def image(self, size: tuple[int, int], where: str) -> int:
        try:
            return self.geometry.num_tokens(*size)
        except ImageError as error:
            raise ApiError("image_too_large", f"{where}: {error}", param=where) from error

    def texts(self, prompt: object) -> list[PromptCost]:
        """A completion's prompts: text or token ids, one or a list of them."""
        prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
        return [PromptCost(self._count(one), (), 0) for one in prompts]

    def _count(self, prompt: object) -> int:
        if isinstance(prompt, str):
            return len(self.tokenizer.encode(prompt))
        if isinstance(prompt, list) and prompt and all(type(i) is int and i >= 0 for i in prompt):
            return len(prompt)
        raise ApiError("invalid_value", "prompt: expected text, token ids, or a list of either", param="prompt")


def require_fit(
    cost: PromptCost,
    max_tokens: int | None,
    limit: int,
    fields: tuple[str, str] = ("messages", "max_tokens"),
    tried: str = "",
) -> int:
    """The most tokens that the answer can have; an error with all the counts where the request cannot fit.

    `fields`: what the route calls its prompt and its limit. `tried`: what was done about it, for the error.
    """
    asked = 1 if max_tokens is None else max_tokens
    if cost.tokens + asked <= limit:
        return limit - cost.tokens if max_tokens is None else max_tokens
    images = ""
    if cost.image_tokens:
        listed = ", ".join(map(str, cost.image_tokens[:16])) + (", ..." if len(cost.image_tokens) > 16 else "")
        images = f" and {sum(cost.image_tokens)} of {len(cost.image_tokens)} images ({listed})"
    over = cost.tokens + asked - limit
    raise ApiError(
        "context_length_exceeded",
        f"the prompt has {cost.tokens} tokens ({cost.text_tokens} of text{images}); with {fields[1]} {asked} that is "
        f"{over} more than the model's limit of {limit}{tried}: shorten the text, send fewer or smaller images, or "
        f"lower {fields[1]}",
        param=fields[0] if cost.tokens + 1 > limit else fields[1],
    )


def _parts(text: str) -> tuple[dict[str, object], dict[str, object]]:
    return {"type": "text", "text": text}, {"type": "image"}


def _options(body: Mapping[str, object]) -> dict[str, bool]:
    """At the engine the request's own fields win over chat_template_kwargs, also where they are left out."""
    given = {name: body[name] for name in OPTIONS if body.get(name) is not None}
    extra = body.get("chat_template_kwargs")
    if extra is not None:
        given |= _extra_options(extra)
    for name, value in given.items():
        if not isinstance(value, bool):
            what = f"{name}: {short(value)} is not supported; expected true or false"
            raise ApiError("invalid_value", what, param=name)
    return {name: bool(value) for name, value in given.items()}


def _extra_options(extra: object) -> dict[str, object]:
    if not isinstance(extra, Mapping):
        what = f"chat_template_kwargs: {kind_of(extra)} is not supported; expected an object"
        raise ApiError("invalid_value", what, param="chat_template_kwargs")
    if extra.get("tools") is not None:
        message = "chat_template_kwargs.tools: is not supported; send them as tools"
        raise ApiError("invalid_value", message, param="chat_template_kwargs")
    return {"keep_thoughts": extra["keep_thoughts"]} if extra.get("keep_thoughts") is not None else {}
