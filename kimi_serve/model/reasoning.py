"""vLLM's reasoning parser for ◁think▷ ... ◁/think▷: inputs.thoughts on vLLM's interface. Knows no model."""

from collections.abc import Iterable, Sequence

from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.reasoning import ReasoningParser
from vllm.tokenizers import TokenizerLike

from kimi_serve.inputs.thoughts import CLOSE, OPEN, Split, ThoughtStream, split
from kimi_serve.inputs.variants import THINK_TRIGGER
from kimi_serve.model.tokenizer import KimiVLTokenizer

# Every token holds at least one byte, so this many tokens before the newest hold any marker that it may complete.
MARKER_TOKENS = len(CLOSE.encode())


class KimiVLReasoningParser(ReasoningParser):
    """Splits text as it is decoded; tells the grammar engine, which sees only tokens, when the thought is over."""

    # vLLM then asks this object where reasoning ends in text, apart from where the grammar begins in tokens.
    engine_based_streaming = True

    def __init__(self, tokenizer: TokenizerLike, *args: object, **kwargs: object) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        if not isinstance(tokenizer, KimiVLTokenizer):
            raise TypeError(f"reasoning parser kimi_vl: tokenizer {type(tokenizer).__name__} is not KimiVLTokenizer")
        self._tokenizer = tokenizer
        self._stream = ThoughtStream()

    @property
    def reasoning_start_str(self) -> str:
        return OPEN

    @property
    def reasoning_end_str(self) -> str:
        return CLOSE

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether no thought is to come: closed in the open turn already, or not asked of a model that can do both."""
        turn = self._open_turn(input_ids)
        if CLOSE in turn:
            return True
        return not turn.lstrip().startswith(OPEN) and not self._will_think(input_ids)

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        recent = list(input_ids[-(len(list(delta_ids)) + MARKER_TOKENS) :])
        turn = self._open_turn(recent)
        if CLOSE in turn:
            return True
        started_in_view = len(recent) == len(input_ids) or self._tokenizer.turn_start_id in recent
        seen = turn.lstrip().rstrip("\ufffd")  # a marker's first character may still lack bytes
        return started_in_view and not seen.startswith(OPEN) and not OPEN.startswith(seen)

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The ids after the one that completes the closing marker."""
        for end in range(1, len(input_ids) + 1):
            if CLOSE in self._tokenizer.decode(input_ids[max(0, end - MARKER_TOKENS) : end]):
                return input_ids[end:]
        return []

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        text = self._tokenizer.decode(list(token_ids))
        if not text.lstrip().startswith(OPEN):
            return 0
        return len(token_ids) - len(self.extract_content_ids(list(token_ids)))

    def extract_reasoning(
        self, model_output: str, request: ChatCompletionRequest | ResponsesRequest
    ) -> tuple[str | None, str | None]:
        # The opening marker may have been the end of the prompt; then only the closing one is here.
        found = split(model_output, opened=CLOSE in model_output and OPEN not in model_output)
        return found.thought or None, found.answer or None

    def adjust_initial_state_from_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        turn = self._open_turn(prompt_token_ids)
        if turn.lstrip().startswith(OPEN):
            self._stream = ThoughtStream(opened=True)

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        return _message(self._stream.feed(delta_text))

    def has_engine_confirmed_reasoning_end(self) -> bool:
        return self._stream.answering

    def finish_streaming(self) -> DeltaMessage | None:
        return _message(self._stream.finish())

    def _open_turn(self, input_ids: Sequence[int]) -> str:
        """The text after the last turn's heading."""
        ids = list(input_ids)
        if self._tokenizer.turn_start_id in ids:
            ids = ids[len(ids) - ids[::-1].index(self._tokenizer.turn_start_id) :]
        return self._tokenizer.decode(ids)

    def _will_think(self, prompt_ids: Sequence[int]) -> bool:
        """Whether the model begins its answer to this prompt with a thought."""
        return True


class KimiVLWhenToldReasoningParser(KimiVLReasoningParser):
    """For models that think when the first turn, the system's, tells them to."""

    def _will_think(self, prompt_ids: Sequence[int]) -> bool:
        ids = list(prompt_ids)
        end = self._tokenizer.native.special_id("<|im_end|>")
        first_turn = ids[: ids.index(end)] if end in ids else ids
        return THINK_TRIGGER in self._tokenizer.decode(first_turn)


def _message(found: Split) -> DeltaMessage | None:
    if not found.thought and not found.answer:
        return None
    return DeltaMessage(reasoning=found.thought or None, content=found.answer or None)
