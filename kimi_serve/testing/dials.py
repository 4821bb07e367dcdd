"""What the fake engine is told to be: speed, length, failure. Knows how they are set; not what an answer looks like."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Final, Literal, get_args

Failure = Literal[
    "none",
    "refuse",  # hangs up on a request without an answer
    "500",
    "503",
    "hang_before_headers",
    "hang_mid_stream",  # after_tokens frames, then silence
    "die_mid_stream",  # after_tokens frames, then the connection is gone
    "malformed",  # after_tokens frames, then bytes that are not HTTP
    "fault",  # 500, or in a stream what vLLM's routes make of it after their opening frames
]
FAILURES: Final = get_args(Failure)


@dataclass(frozen=True, slots=True)
class Dials:
    ttft_s: float = 0.0
    itl_s: float = 0.0
    tokens: int = 16
    text: str = " token"  # of every token
    thought_tokens: int = 0  # so many of these come first and are a thought, in a chat that streams
    prompt_tokens: int = 10
    fail: Failure = "none"
    after_tokens: int = 0
    slots: int = 0  # requests that it answers at once, as it says, while others wait in it; 0: all
    model: str = "kimi-vl"
    max_model_len: int = 131072
    image_cache_bytes: int = 4 << 30  # that it says it has
    image_memory: int = 0  # pictures that it remembers by name; others need their bytes. 0: it takes every name

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            number = kind is float and isinstance(value, int)
            if isinstance(value, bool) or not (number or isinstance(value, kind)):
                raise ValueError(f"{name}: {kind.__name__} expected, not {value!r}")
            if not isinstance(value, str) and value < 0:
                raise ValueError(f"{name}: must not be negative, not {value!r}")
        if self.fail not in FAILURES:
            raise ValueError(f"fail: one of {', '.join(FAILURES)} expected, not {self.fail!r}")

    def turned(self, changes: Mapping[str, object]) -> Dials:
        """A copy with some dials changed; a name that is no dial is an error."""
        if unknown := sorted(set(changes) - set(_KINDS)):
            raise ValueError(f"{', '.join(unknown)}: no such dial; there are {', '.join(_KINDS)}")
        return replace(self, **changes)  # type: ignore[arg-type]  # __post_init__ looks at the types

    def as_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


_KINDS: Final[dict[str, type]] = {field.name: type(field.default) for field in fields(Dials)}


@lru_cache(maxsize=256)
def turned_by(dials: Dials, changes: bytes) -> Dials:
    """Dials changed by a JSON object. Cached: a benchmark sends the same header thousands of times."""
    read = json.loads(changes)
    if not isinstance(read, dict):
        raise ValueError(f"a JSON object of dials expected, not {changes[:40]!r}")  # noqa: TRY004  # it is input
    return dials.turned(read)


def from_command_line(arguments: Sequence[str]) -> tuple[int, Dials]:
    """`--port N` and one flag for every dial."""
    parser = argparse.ArgumentParser(
        prog="python -m kimi_serve.testing.fake_engine",
        description="An engine that answers like vLLM and computes nothing",
    )
    parser.add_argument("--port", type=int, required=True)
    for name, kind in _KINDS.items():
        choices = FAILURES if name == "fail" else None
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, choices=choices, default=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    return given.pop("port"), Dials().turned(given)
