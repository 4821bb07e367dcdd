"""vLLM's tool parser for Kimi-VL: inputs.tool_calls on vLLM's interface. Knows no model."""

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tokenizers import TokenizerLike
from vllm.tool_parsers.abstract_tool_parser import ToolParser

from kimi_serve.inputs.tool_calls import may_be_calls, parse_calls


class KimiVLToolParser(ToolParser):
    """Holds an answer back while it may be calls. A forced tool_choice does not come here: vLLM's grammar serves it."""

    engine_based_streaming = True  # vLLM then asks, when the answer is over, for what was held back

    def __init__(self, tokenizer: TokenizerLike, tools: list[Any] | None = None) -> None:
        super().__init__(tokenizer, tools)
        self._names: frozenset[str] = frozenset()
        self._held = ""
        self._is_text = False

    def extract_tool_calls(self, model_output: str, request: ChatCompletionRequest) -> ExtractedToolCallInformation:
        calls = parse_calls(model_output, _callable(request))
        return ExtractedToolCallInformation(
            tools_called=bool(calls),
            tool_calls=[ToolCall(function=FunctionCall(name=call.name, arguments=call.arguments)) for call in calls],
            content=None if calls else model_output,
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: ChatCompletionRequest,
    ) -> DeltaMessage | None:
        self._names = _callable(request)
        self._held += delta_text
        self._is_text = self._is_text or not self._names or not may_be_calls(self._held)
        if not self._is_text:
            return None
        text, self._held = self._held, ""
        return DeltaMessage(content=text) if text else None

    def finish_streaming(self) -> DeltaMessage | None:
        held, self._held = self._held, ""
        if calls := parse_calls(held, self._names):
            return DeltaMessage(
                tool_calls=[
                    DeltaToolCall(
                        index=index,
                        id=make_tool_call_id(),
                        type="function",
                        function=DeltaFunctionCall(name=call.name, arguments=call.arguments),
                    )
                    for index, call in enumerate(calls)
                ]
            )
        return DeltaMessage(content=held) if held else None


def _callable(request: ChatCompletionRequest) -> frozenset[str]:
    """The names that this answer may call."""
    if request.tool_choice == "none":
        return frozenset()
    return frozenset(_name(tool) for tool in request.tools or ())


def _name(tool: Any) -> str:
    """Chat tools hold a function; those of the Responses API are one."""
    return str(tool.function.name if hasattr(tool, "function") else tool.name)
