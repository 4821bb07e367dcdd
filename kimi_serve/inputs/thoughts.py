"""Thoughts: ◁think▷ reasoning ◁/think▷ answer, as text, whole or in pieces. Knows no tokens.

The markers are ordinary text that a tokenizer cuts into several tokens, so they can only be found in decoded text.
"""

from dataclasses import dataclass
from enum import Enum, auto

OPEN = "◁think▷"
CLOSE = "◁/think▷"


@dataclass(frozen=True, slots=True)
class Split:
    """A piece of output, or all of it: the part that is thought and the part that is answer."""

    thought: str = ""
    answer: str = ""


class _State(Enum):
    START = auto()  # the output may still turn out to begin with OPEN
    THINKING = auto()
    GAP = auto()  # CLOSE seen, only white space since
    ANSWER = auto()


class ThoughtStream:
    """Splits output that arrives in pieces; the joined result does not depend on where the pieces are cut.

    White space around a thought and before an answer is dropped, as the authors' own extraction does. An unfinished
    thought is all thought, and there is no answer. Output that does not begin with a thought is all answer.
    """

    def __init__(self, *, opened: bool = False) -> None:
        """`opened`: the prompt already ended inside a thought."""
        self._state = _State.THINKING if opened else _State.START
        self._held = ""  # text that cannot be judged yet
        self._begun = False  # whether the thought has shown anything but white space

    @property
    def answering(self) -> bool:
        """Whether the answer has begun."""
        return self._state is _State.ANSWER

    def feed(self, text: str) -> Split:
        thought, answer = "", ""
        self._held += text
        if self._state is _State.START:
            self._judge_start()
        if self._state is _State.THINKING:
            thought = self._take_thought()
        if self._state is _State.GAP:
            self._held = self._held.lstrip()
            if self._held:
                self._state = _State.ANSWER
        if self._state is _State.ANSWER:
            answer, self._held = self._held, ""
        return Split(thought, answer)

    def finish(self) -> Split:
        """What was held back and can no longer become a marker."""
        held, self._held = self._held, ""
        if self._state is _State.THINKING:
            return Split(thought=held.rstrip() if held.strip() else "")
        return Split(answer=held if self._state is _State.START else "")

    def _judge_start(self) -> None:
        seen = self._held.lstrip()
        if seen.startswith(OPEN):
            self._state, self._held = _State.THINKING, seen[len(OPEN) :]
        elif not OPEN.startswith(seen):
            self._state = _State.ANSWER

    def _take_thought(self) -> str:
        before, marker, after = self._held.partition(CLOSE)
        if marker:
            self._state, self._held = _State.GAP, after
            return self._trim_start(before.rstrip())
        safe = self._held[: len(self._held) - _partial_close(self._held)].rstrip()
        self._held = self._held[len(safe) :]
        return self._trim_start(safe)

    def _trim_start(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        return text


def split(text: str, *, opened: bool = False) -> Split:
    """Split a whole output."""
    stream = ThoughtStream(opened=opened)
    fed, rest = stream.feed(text), stream.finish()
    return Split(fed.thought + rest.thought, fed.answer + rest.answer)


def _partial_close(text: str) -> int:
    """Length of the longest end of `text` that CLOSE begins with."""
    for size in range(min(len(text), len(CLOSE) - 1), 0, -1):
        if CLOSE.startswith(text[-size:]):
            return size
    return 0
