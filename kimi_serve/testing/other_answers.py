"""The bytes of vLLM 0.32's answers to Messages and Responses. Knows its field names and their order, never when."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Final

from kimi_serve.protocol.sse import event
from kimi_serve.testing.asked import Asked
from kimi_serve.testing.dials import Dials

Json = dict[str, object]
_numbers: Final = itertools.count(1)


class MessagesAnswer:
    """Anthropic's: named events, usage at the beginning and the end, no [DONE]."""

    def __init__(self, dials: Dials, asked: Asked) -> None:
        self.tokens, self._is_cut = asked.length(dials.tokens)
        self._dials = dials
        self._id = f"chatcmpl-{next(_numbers):032x}"

    def opening(self) -> bytes:
        usage: Json = {"input_tokens": self._dials.prompt_tokens, "output_tokens": 0}
        start = _named("message_start", message=self._message([], None, usage))
        return start + _named("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def contents(self) -> Iterator[bytes]:
        delta = {"type": "text_delta", "text": self._dials.text}
        return itertools.repeat(_named("content_block_delta", index=0, delta=delta), self.tokens)

    def ending(self) -> bytes:
        delta = {"stop_reason": self._reason(), "stop_sequence": None}
        told = _named("message_delta", delta=delta, usage=self._usage())
        return _named("content_block_stop", index=0) + told + _named("message_stop")

    def whole(self) -> bytes:
        text: Json = {"type": "text", "text": self._dials.text * self.tokens}
        return _dumps(self._message([text], self._reason(), self._usage()))

    def _message(self, content: list[Json], reason: str | None, usage: Json) -> Json:
        told: Json = {"id": self._id, "type": "message", "role": "assistant", "content": content}
        return told | {"model": self._dials.model, "stop_reason": reason, "stop_sequence": None, "usage": usage}

    def _usage(self) -> Json:
        return {"input_tokens": self._dials.prompt_tokens, "output_tokens": self.tokens}

    def _reason(self) -> str:
        return "max_tokens" if self._is_cut else "end_turn"


class ResponsesAnswer:
    """OpenAI's: named and numbered events, all of the answer once more in the last; no [DONE]."""

    def __init__(self, dials: Dials, asked: Asked) -> None:
        self.tokens, self._is_cut = asked.length(dials.tokens)
        self._dials, self._limit = dials, asked.max_tokens
        number = next(_numbers)
        self._id, self._item_id, self._created = f"resp_{number:016x}", f"msg_{number:016x}", int(time.time())
        self._sequence = itertools.count()

    def opening(self) -> bytes:
        begun = self._response("in_progress", [], None)
        item = self._item("in_progress", [])
        return b"".join(
            (
                self._event("response.created", response=begun),
                self._event("response.in_progress", response=begun),
                self._event("response.output_item.added", item=item, output_index=0),
                self._event("response.content_part.added", **self._place(), part=_text("")),
            )
        )

    def contents(self) -> Iterator[bytes]:
        for _ in range(self.tokens):
            yield self._event("response.output_text.delta", **self._place(), delta=self._dials.text, logprobs=[])

    def ending(self) -> bytes:
        text = self._dials.text * self.tokens
        item = self._item("completed", [_text(text)])
        return b"".join(
            (
                self._event("response.output_text.done", **self._place(), logprobs=[], text=text),
                self._event("response.content_part.done", **self._place(), part=_text(text)),
                self._event("response.output_item.done", item=item, output_index=0),
                # vLLM has this one event for all ends; the status says which it is.
                self._event("response.completed", response=self._finished(item)),
            )
        )

    def whole(self) -> bytes:
        return _dumps(self._finished(self._item("completed", [_text(self._dials.text * self.tokens)])))

    def _finished(self, item: Json) -> Json:
        usage = {
            "input_tokens": self._dials.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self.tokens,
            "output_tokens_details": {"reasoning_tokens": 0, "tool_output_tokens": 0},
            "total_tokens": self._dials.prompt_tokens + self.tokens,
        }
        return self._response("incomplete" if self._is_cut else "completed", [item], usage)

    def _response(self, status: str, output: list[Json], usage: Json | None) -> Json:
        told: Json = {"id": self._id, "created_at": self._created}
        told["incomplete_details"] = {"reason": "max_output_tokens"} if status == "incomplete" else None
        told |= {"instructions": None, "metadata": None, "model": self._dials.model, "object": "response"}
        told |= {"output": output, "parallel_tool_calls": True, "temperature": 1.0, "tool_choice": "none"}
        told |= {"tools": [], "top_p": 1.0, "background": False, "max_output_tokens": self._limit}
        return told | {"reasoning": None, "status": status, "truncation": "disabled", "usage": usage, "user": None}

    def _item(self, status: str, content: list[Json]) -> Json:
        return {"id": self._item_id, "content": content, "role": "assistant", "status": status, "type": "message"}

    def _place(self) -> Json:
        return {"content_index": 0, "item_id": self._item_id, "output_index": 0}

    def _event(self, name: str, **fields: object) -> bytes:
        return event(_dumps({**fields, "sequence_number": next(self._sequence), "type": name}), name)


def _text(text: str) -> Json:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


def _named(name: str, **fields: object) -> bytes:
    return event(_dumps({"type": name, **fields}), name)


def _dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
