"""One engine as the gateway sees it: load, health, caches. Knows outcomes that it is told; opens no connection."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from kimi_serve.gateway.replicas.breaker import Breaker, BreakerLimits, State
from kimi_serve.gateway.replicas.choose import ReplicaView, RequestView, remaining
from kimi_serve.gateway.replicas.health import Finding
from kimi_serve.gateway.replicas.holdings import Holdings
from kimi_serve.gateway.replicas.prompt import Prompt

logger = logging.getLogger(__name__)


BYTES_A_TOKEN: Final = 2352  # of a processed image: 2 x 2 patches of 14 x 14 pixels, 3 bytes each


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    prefix_tokens: int = 500_000  # about what the engine's KV cache holds
    image_cache_bytes: int = 4 << 30  # its cache of processed images, where it does not say itself
    image_cache_share: float = 0.5  # of that cache, counted on: other gateways fill it too
    slow_start_s: float = 30.0
    least_warmth: float = 0.1
    breaker: BreakerLimits = field(default_factory=BreakerLimits)

    def image_tokens(self, cache_bytes: int | None) -> int:
        """Tokens of images that an engine with such a cache is believed to hold."""
        told = self.image_cache_bytes if cache_bytes is None else cache_bytes
        return int(told * self.image_cache_share) // BYTES_A_TOKEN


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    url: str
    is_ready: bool
    problem: str | None
    breaker: State
    ejections: int
    requests: int
    outstanding: int
    warmth: float
    models: Mapping[str, int]
    calls: Mapping[str, int]  # by outcome, since the gateway knows it


class Replica:
    def __init__(
        self, url: str, limits: ReplicaLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = url
        self._limits, self._clock = limits or ReplicaLimits(), clock
        self._breaker = Breaker(self._limits.breaker, clock)
        self._ready_at = clock()
        self.holdings = Holdings(self._limits.prefix_tokens, self._limits.image_tokens(None))
        self._instance: str | None = None
        self.requests = 0
        self.outstanding = 0  # tokens of work
        self.is_ready = False
        self.problem: str | None = "not checked yet"
        self.models: Mapping[str, int] = {}
        self.max_running_requests: int | None = None  # as it says itself
        self.calls = {"answered": 0, "failed": 0, "abandoned": 0}
        self._bad_checks = 0

    def view(self, prompt: Prompt) -> ReplicaView:
        prefix_tokens = self.holdings.prefix_tokens(prompt)
        return ReplicaView(
            url=self.url,
            is_available=self.is_ready and self._breaker.allows(),
            models=self.models,
            outstanding=self.outstanding,
            warmth=self.warmth,
            prefix_tokens=prefix_tokens,
            image_tokens=self.holdings.image_tokens(prompt, prefix_tokens),
        )

    @property
    def warmth(self) -> float:
        """From `least_warmth` to 1 in `slow_start_s` after it became ready, or was let in again."""
        elapsed = self._clock() - max(self._ready_at, self._breaker.closed_at)
        return min(1.0, max(self._limits.least_warmth, elapsed / self._limits.slow_start_s))

    def serving(self, prompt: Prompt, request: RequestView) -> "Call":
        """A block in which a request is with the engine. One that ends with no outcome told was abandoned: no one's
        fault.
        """
        view = self.view(prompt)
        call = Call(self, prompt, self._breaker.begin(), view.prefix_tokens, remaining(view, request))
        # Before the answer: what arrives in the meantime with the same beginning should come here too.
        self.holdings.remember_prefix(prompt)
        return call

    def note(self, finding: Finding, unready_after: int = 1) -> None:
        """What an active check found."""
        if finding.problem is None:
            if not self.is_ready or finding.instance != self._instance:
                # It was restarted, or may have been, with empty caches.
                self.holdings.clear()
                self.holdings.resize_images(self._limits.image_tokens(finding.image_cache_bytes))
            self._instance = finding.instance
            self.max_running_requests = finding.max_running_requests
            if not self.is_ready:
                self._ready_at = self._clock()
                logger.info("replica ready", extra={"replica": self.url, "models": sorted(finding.models)})
            self.is_ready, self.problem, self.models, self._bad_checks = True, None, finding.models, 0
            return
        self._bad_checks += 1
        self.problem = finding.problem
        if self.is_ready and self._bad_checks >= unready_after:
            self.is_ready = False
            logger.warning("replica not ready", extra={"replica": self.url, "problem": finding.problem})

    def snapshot(self) -> ReplicaSnapshot:
        return ReplicaSnapshot(
            url=self.url,
            is_ready=self.is_ready,
            problem=self.problem,
            breaker=self._breaker.state,
            ejections=self._breaker.ejections,
            requests=self.requests,
            outstanding=self.outstanding,
            warmth=self.warmth,
            models=self.models,
            calls=dict(self.calls),
        )


class Call:
    """One attempt on one replica. The first outcome told counts."""

    def __init__(self, replica: Replica, prompt: Prompt, ticket: int, prefix_tokens: int, work: int) -> None:
        self._replica, self._prompt, self._ticket, self._work = replica, prompt, ticket, work
        self.prefix_tokens = prefix_tokens  # of the prompt, that the engine has seen before
        self._is_over = False

    def __enter__(self) -> Self:
        self._replica.requests += 1
        self._replica.outstanding += self._work
        return self

    def __exit__(self, *_: object) -> None:
        self._replica.outstanding -= self._work
        self._replica.requests -= 1
        self.abandoned()

    def succeeded(self) -> None:
        """The engine answered; errors that the client caused are answers."""
        if self._end("answered"):
            self._replica._breaker.succeeded(self._ticket)

    def prompt_was_read(self) -> None:
        """Tokens came of it: by now its images are in the engine's caches. An error may come before they are."""
        self._replica.holdings.remember_images(self._prompt)

    def failed(self) -> None:
        """No connection, a 5xx, a time-out, or a stream that broke off."""
        if self._end("failed"):
            before = self._replica._breaker.ejections
            self._replica._breaker.failed(self._ticket)
            self._replica.holdings.forget_images(picture.hash for picture, _ in self._prompt.pictures)
            if self._replica._breaker.state == "open" and self._replica._breaker.ejections != before:
                self._replica.holdings.clear()
                logger.warning("replica ejected", extra={"replica": self._replica.url})

    def refused(self) -> None:
        """Nobody listens there: it is not ready, whatever the last check found, until the next good one."""
        if self._end("failed"):
            self._replica._breaker.abandoned(self._ticket)
            self._replica.note(Finding("it takes no connections"))

    def abandoned(self) -> None:
        if self._end("abandoned"):
            self._replica._breaker.abandoned(self._ticket)

    def _end(self, outcome: str) -> bool:
        was_over, self._is_over = self._is_over, True
        if not was_over:
            self._replica.calls[outcome] += 1
        return not was_over
