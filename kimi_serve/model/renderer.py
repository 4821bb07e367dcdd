"""Chat requests -> token ids for vLLM, by inputs.chat. Knows vLLM's message parsing; never a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from vllm.config import VllmConfig
from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.multimodal.media.connector import merge_media_io_kwargs
from vllm.renderers.base import BaseRenderer
from vllm.renderers.chat_utils import (
    ChatCompletionMessageParam,
    ConversationMessage,
    parse_chat_messages,
    parse_chat_messages_async,
)
from vllm.renderers.params import ChatParams
from vllm.utils.async_utils import make_async

from kimi_serve.errors import ChatError
from kimi_serve.inputs import chat
from kimi_serve.inputs.config import parse_image_config
from kimi_serve.model import image_parts
from kimi_serve.model.image_parts import ImagePart
from kimi_serve.model.tokenizer import KimiVLTokenizer

# Images keep their own mode until our processor converts them: the published order is resize, pad, then RGB.
MEDIA_IO = {"image": {"image_mode": None}}

OPTIONS = ("add_generation_prompt", "continue_final_message", "keep_thoughts", "tools")
# Set by vLLM or its clients for templates in general, with no meaning for this one.
IGNORED = (
    "return_dict",
    "tokenize",
    "documents",
    "reasoning_effort",
    "enable_thinking",
    "cohere_format",
    "chat_template",
)


class KimiVLRenderer(BaseRenderer[KimiVLTokenizer]):
    """Renders to ids, so text that users write never meets the special tokens' names."""

    def __init__(self, config: VllmConfig, tokenizer: KimiVLTokenizer | None) -> None:
        super().__init__(config, tokenizer)
        self._geometry = parse_image_config(self.model_config.hf_image_processor_config).geometry
        self._named_async = make_async(self._named, executor=self._executor)
        self._prompt_async = make_async(self._prompt, executor=self._executor)

    def render_messages(
        self, messages: list[ChatCompletionMessageParam], params: ChatParams
    ) -> tuple[list[ConversationMessage], TokensPrompt]:
        messages, parts = self._read(messages)
        try:
            conversation, images, uuids = self._parse(messages, params)
        except image_parts.unreadable(parts) as error:
            raise self._named(error, parts, params) from error
        return conversation, self._prompt(conversation, parts, images, uuids, params)

    async def render_messages_async(
        self, messages: list[ChatCompletionMessageParam], params: ChatParams
    ) -> tuple[list[ConversationMessage], TokensPrompt]:
        messages, parts = self._read(messages)
        try:
            conversation, images, uuids = await parse_chat_messages_async(
                messages, self.model_config, **_media_options(params)
            )
        except image_parts.unreadable(parts) as error:
            raise await self._named_async(error, parts, params) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise VLLMUnprocessableEntityError(
                f"image_url: cannot be fetched: {error}", parameter="messages"
            ) from error
        return conversation, await self._prompt_async(conversation, parts, images, uuids, params)

    def _read(
        self, messages: list[ChatCompletionMessageParam]
    ) -> tuple[list[ChatCompletionMessageParam], list[ImagePart]]:
        messages = image_parts.settled(messages)
        parts = image_parts.find(messages)
        image_parts.check_urls(parts, local_files=bool(self.model_config.allowed_local_media_path))
        image_parts.check_rows(parts)
        return messages, parts

    def _parse(self, messages: list[ChatCompletionMessageParam], params: ChatParams) -> tuple[Any, Any, Any]:
        return parse_chat_messages(messages, self.model_config, **_media_options(params))

    def _named(self, error: Exception, parts: Sequence[ImagePart], params: ChatParams) -> Exception:
        """The error with the place of the unreadable picture: vLLM reads all at once and does not say which."""
        for part in image_parts.inlined(parts):
            try:
                self._parse([{"role": "user", "content": [part.part]}], params)
            except image_parts.unreadable([part]) as found:
                return part.refused_reading(found)
        return VLLMValidationError(str(error), parameter="messages")

    def _prompt(
        self,
        conversation: Sequence[ConversationMessage],
        parts: Sequence[ImagePart],
        images: Any,
        uuids: Any,
        params: ChatParams,
    ) -> TokensPrompt:
        if images is not None and isinstance(images.get("image"), list):  # rows may come as one tensor
            image_parts.check_images(parts, images["image"], self._geometry)
        prompt = TokensPrompt(prompt_token_ids=self._render(conversation, params))
        if images is not None:
            prompt["multi_modal_data"] = images
        if uuids is not None:
            prompt["multi_modal_uuids"] = uuids
        return prompt

    def _render(self, conversation: Sequence[ConversationMessage], params: ChatParams) -> list[int]:
        options = _options(params)
        try:
            return chat.render([_plain(message) for message in conversation], self.get_tokenizer().native, **options)
        except ChatError as error:
            raise VLLMValidationError(str(error), parameter="messages") from error


def _options(params: ChatParams) -> dict[str, Any]:
    if params.chat_template is not None:
        raise VLLMValidationError(
            "chat_template: Kimi-VL's template is built in and cannot be replaced; leave it out",
            parameter="chat_template",
        )
    given = {
        name: value
        for name, value in params.get_apply_chat_template_kwargs().items()
        if name not in IGNORED and value is not None
    }
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise VLLMValidationError(
            f"chat_template_kwargs: {', '.join(unknown)} not supported; supported: {', '.join(OPTIONS)}",
            parameter="chat_template_kwargs",
        )
    if not isinstance(given.get("keep_thoughts", False), bool):
        raise VLLMValidationError(
            f"chat_template_kwargs.keep_thoughts: {given['keep_thoughts']!r} is not supported; supported: true, false",
            parameter="chat_template_kwargs",
        )
    return given


def _media_options(params: ChatParams) -> dict[str, Any]:
    return {
        "content_format": "openai",
        "media_io_kwargs": merge_media_io_kwargs(MEDIA_IO, params.media_io_kwargs),
        "mm_processor_kwargs": params.mm_processor_kwargs,
    }


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with parts reduced to what they are: fields beside a text part must not make it an image."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    return {**message, "content": [_bare(part) for part in content]}


def _bare(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": part["type"]}
