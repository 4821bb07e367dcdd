"""Which replica a request goes to. Knows plain values only: no clock, no chance, no state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from kimi_serve.gateway.cost import encoding

SLACK: Final = 1024  # tokens of work that are not worth a decision: less than a screenshot
SLACK_SHARE: Final = 4  # and a quarter of the mean load, so that a choice does not flutter with every request


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica as one request sees it."""

    url: str
    is_available: bool  # ready, and its breaker lets a request through
    models: Mapping[str, int]  # what it serves, and the longest context of each in tokens
    outstanding: int  # tokens of work that it still has to do
    warmth: float  # 1, or less while it starts slowly
    prefix_tokens: int  # of this prompt, held in its prefix cache
    image_tokens: int  # of this prompt's images, held encoded


@dataclass(frozen=True, slots=True)
class RequestView:
    model: str
    weight: int  # Cost.weight
    total_tokens: int  # prompt and the most that may be generated
    key: bytes  # Prompt.key
    excluded: frozenset[str] = frozenset()  # URLs that have failed this request


def choose(replicas: Sequence[ReplicaView], request: RequestView) -> str | None:
    """The URL of the replica that will have done this request's work first; None if none may take it.

    Everything is in tokens, as Cost.weight is. For each replica that is available and has the model and the context:

        saved = prefix_tokens + encoding(image_tokens)        what its caches spare it
        work  = (outstanding + weight - saved) / warmth       what lies between now and the answer's end

    The least work wins, but replicas within SLACK + mean outstanding / SLACK_SHARE of it count as equal; among these
    the one that saves most wins (in units of SLACK), then the highest rendezvous hash of (key, URL).

    It follows that
    - a cache pulls with the strength of what it saves: a replica that holds 40,000 tokens of the prompt gets it until
      it is 40,000 tokens, and the slack, busier than the least busy one. So load is bounded without another rule.
    - a conversation that nobody holds goes where its key hashes, on every gateway alike, while that replica's load is
      within the slack: consistent hashing with bounded load. A replica that goes away moves only its own share.
    - a beginning shared by all, shorter than SLACK, pulls nobody.
    - a replica that starts slowly gets what the others are too busy for.
    """
    able = [replica for replica in replicas if _is_able(replica, request)]
    if not able:
        return None
    work = {replica.url: (replica.outstanding + remaining(replica, request)) / replica.warmth for replica in able}
    mean = sum(replica.outstanding for replica in able) / len(able)
    limit = min(work.values()) + SLACK + mean / SLACK_SHARE
    equal = [replica for replica in able if work[replica.url] <= limit]
    return max(equal, key=lambda replica: (_saved(replica) // SLACK, _rendezvous(request.key, replica.url))).url


def remaining(replica: ReplicaView, request: RequestView) -> int:
    """Tokens of work that this request will be on this replica: what `outstanding` grows by."""
    return max(1, request.weight - _saved(replica))


def _is_able(replica: ReplicaView, request: RequestView) -> bool:
    fits = request.total_tokens <= replica.models.get(request.model, -1)
    return fits and replica.is_available and replica.url not in request.excluded


def _saved(replica: ReplicaView) -> int:
    return replica.prefix_tokens + encoding(replica.image_tokens)


def _rendezvous(key: bytes, url: str) -> bytes:
    return blake3(key + url.encode()).digest(8)
