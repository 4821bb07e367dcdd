"""Chat requests -> token ids for vLLM, by inputs.chat. Knows vLLM's message parsing; never a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
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
        self._render_async = make_async(self._render, executor=self._executor)

    def render_messages(
        self, messages: list[ChatCompletionMessageParam], params: ChatParams
    ) -> tuple[list[ConversationMessage], TokensPrompt]:
        conversation, images, uuids = parse_chat_messages(
            messages,
            self.model_config,
            content_format="openai",
            media_io_kwargs=merge_media_io_kwargs(MEDIA_IO, params.media_io_kwargs),
            mm_processor_kwargs=params.mm_processor_kwargs,
        )
        return conversation, _prompt(self._render(conversation, params), images, uuids)

    async def render_messages_async(
        self, messages: list[ChatCompletionMessageParam], params: ChatParams
    ) -> tuple[list[ConversationMessage], TokensPrompt]:
        conversation, images, uuids = await parse_chat_messages_async(
            messages,
            self.model_config,
            content_format="openai",
            media_io_kwargs=merge_media_io_kwargs(MEDIA_IO, params.media_io_kwargs),
            mm_processor_kwargs=params.mm_processor_kwargs,
        )
        return conversation, _prompt(await self._render_async(conversation, params), images, uuids)

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
    return given


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with parts reduced to what they are: fields beside a text part must not make it an image."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    return {**message, "content": [_bare(part) for part in content]}


def _bare(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": "image"}


def _prompt(token_ids: list[int], images: Any, uuids: Any) -> TokensPrompt:
    prompt = TokensPrompt(prompt_token_ids=token_ids)
    if images is not None:
        prompt["multi_modal_data"] = images
    if uuids is not None:
        prompt["multi_modal_uuids"] = uuids
    return prompt
