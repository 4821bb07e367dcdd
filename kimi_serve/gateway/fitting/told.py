"""What was done so that a request fits, as its answer says it. Knows counts and JSON; decides nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kimi_serve.gateway.fitting.plan import STEPS, Fit

NAME: Final = "kimi_serve"  # of the object in an answer: clients' packages keep fields that they do not know
HEADER: Final = "x-kimi-serve-fit"
Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Told:
    fit: Fit
    before: Sequence[int | None]  # tokens of every picture that came; None: it was left out unseen
    after: Sequence[int | None]  # None: a marker has its place
    text_before: int
    text_after: int
    steps: int  # the factor on the pictures' tokens, in plan.STEPS

    @property
    def tokens_before(self) -> int | None:
        known = [count for count in self.before if count is not None]
        return self.text_before + sum(known) if len(known) == len(self.before) else None

    @property
    def tokens_after(self) -> int:
        return self.text_after + sum(count or 0 for count in self.after)

    @property
    def scaled(self) -> int:
        return sum(now is not None and now != was for was, now in zip(self.before, self.after, strict=True))

    @property
    def left_out(self) -> int:
        return self.after.count(None)

    @property
    def has_changed(self) -> bool:
        return self.scaled + self.left_out > 0

    def summary(self) -> Json:
        return {
            "fit": self.fit,
            "prompt_tokens_before": self.tokens_before,
            "prompt_tokens": self.tokens_after,
            "images": len(self.before),
            "images_scaled": self.scaled,
            "images_left_out": self.left_out,
            "factor": self.steps / STEPS,
        }

    def whole(self) -> Json:
        pairs = zip(self.before, self.after, strict=True)
        return {**self.summary(), "image_tokens": [{"before": was, "after": now} for was, now in pairs]}

    def header(self) -> dict[str, str]:
        return {HEADER: json.dumps(self.summary(), separators=(",", ":"))}

    def added_to(self, answer: bytes) -> bytes:
        """A whole answer with this as its last field. Its other bytes stay as they are."""
        body = answer.rstrip()
        if not (body.startswith(b"{") and body.endswith(b"}")):
            return answer  # an engine's fault, which is the client's to read
        rest = body[:-1].rstrip()
        comma = b"" if rest == b"{" else b","
        return b'%s%s"%s":%s}' % (rest, comma, NAME.encode(), json.dumps(self.whole()).encode())
