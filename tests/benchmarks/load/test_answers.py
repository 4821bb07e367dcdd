"""What is made of an answer's bytes, however a server cuts them."""

import json

import pytest

from benchmarks.load.answers import ENDED_EARLY, Seen
from kimi_serve.protocol.sse import DONE, KEEP_ALIVE, event


def said(**told: object) -> bytes:
    return event(json.dumps(told))


def text(content: str | None, **more: object) -> bytes:
    return said(choices=[{"index": 0, "delta": {"content": content, **more}}])


def heard(*frames: bytes) -> Seen:
    """A frame a second."""
    seen = Seen(0.0)
    for at, frame in enumerate(frames, 1):
        seen.feed(frame, float(at))
    return seen


def test_the_first_token_is_the_first_text_and_no_role() -> None:
    usage = said(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3})
    seen = heard(text("", role="assistant"), KEEP_ALIVE, text("a"), text("b"), text(""), usage, DONE)
    assert (seen.outcome, seen.why) == ("answered", None)
    assert seen.token_s == [3.0, 4.0, 5.0]
    assert (seen.prompt_tokens, seen.answer_tokens) == (7, 3)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_is_text_too(name: str) -> None:
    assert heard(text(None, **{name: "hm"})).token_s == [1.0]


def test_frames_in_pieces_are_frames() -> None:
    whole = text("a") + text("b") + DONE
    seen = heard(whole[:9], whole[9:])
    assert (seen.outcome, seen.token_s) == ("answered", [2.0, 2.0])


def test_a_stream_that_only_ends_has_failed() -> None:
    seen = heard(text("a"))
    assert (seen.outcome, seen.why) == ("failed", ENDED_EARLY)


def test_an_error_event_is_a_failure_though_the_stream_ends_as_it_should() -> None:
    seen = heard(text("a"), said(error={"message": "no", "code": "upstream_error"}), DONE)
    assert (seen.outcome, seen.why) == ("failed", "stream: upstream_error")


@pytest.mark.parametrize(
    ("status", "code", "retry_after", "outcome", "why"),
    [
        (503, "queue_full", "2", "refused", "503 queue_full"),
        (429, "rate_limited", "0.5", "refused", "429 rate_limited"),
        (429, "rate_limited", None, "failed", "429 rate_limited without Retry-After"),
        (503, "queue_full", "soon", "failed", "503 queue_full without Retry-After"),
        (500, "internal_error", "2", "failed", "500 internal_error"),
    ],
)
def test_a_refusal_says_when_to_come_back(
    status: int, code: str, retry_after: str | None, outcome: str, why: str
) -> None:
    seen = Seen(0.0)
    seen.refuse(status, json.dumps({"error": {"code": code}}).encode(), None, retry_after)
    assert (seen.outcome, seen.why) == (outcome, why)


def test_what_a_proxy_says_is_told_by_its_status() -> None:
    seen = Seen(0.0)
    seen.refuse(502, b"<html>Bad Gateway</html>", None, None)
    assert (seen.outcome, seen.why) == ("failed", "502")


def test_what_is_no_chat_completion_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected"):
        heard(event('["no", "chunk"]'))
