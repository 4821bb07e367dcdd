"""One request's way to an engine and back. Knows slots, replicas and outcomes; not what was asked.

Everything that a request holds (bytes, charge, slot, connection) hangs on one exit stack, so that whoever ends it,
the last byte, an error or a client that leaves, gives all of it back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace

import msgspec

from kimi_serve.gateway.cost import Cost
from kimi_serve.gateway.dialects import CHAT, Dialect
from kimi_serve.gateway.gateway import Gateway, engine_headers, timeouts
from kimi_serve.gateway.identity import Caller
from kimi_serve.gateway.prompt_cost import PromptCost
from kimi_serve.gateway.replicas.choose import RequestView
from kimi_serve.gateway.replicas.prompt import Prompt
from kimi_serve.gateway.replicas.replica import Call, Replica
from kimi_serve.gateway.streaming import Observation, relay
from kimi_serve.gateway.tenants import charge as charging
from kimi_serve.gateway.tenants.charge import Charge
from kimi_serve.gateway.upstream import Response, Timeouts, UpstreamError
from kimi_serve.protocol.errors import ApiError

_PASSED_ON = ("traceparent", "tracestate", "x-request-id")
_ANOTHER_MAY_DO = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class Work:
    """What a route made of a request."""

    path: str
    body: bytes
    model: str
    cost: PromptCost
    output_tokens: int  # at most, over all choices
    prompt: Prompt
    headers: Mapping[str, str]
    stream: bool
    arrived: float
    dialect: Dialect = CHAT

    @property
    def estimate(self) -> Cost:
        cost = self.cost
        return Cost(cost.text_tokens, sum(cost.image_tokens), self.output_tokens, cost.pixels, len(self.body))


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answered(msgspec.Struct):
    usage: dict[str, object] | None = None


@dataclass(slots=True)
class Exchange:
    gateway: Gateway
    caller: Caller
    work: Work
    stack: AsyncExitStack
    ratelimit: dict[str, str] = field(default_factory=dict)
    _charge: Charge | None = None
    _call: Call | None = None

    async def open(self) -> Response:
        """The engine's answer, from its first byte. Waits for a slot; where one engine fails, another is tried."""
        work, gateway = self.work, self.gateway
        cost = work.estimate
        await self._pay(cost)
        slot = await self.stack.enter_async_context(
            gateway.admission.slot(
                self.caller.tenant,
                cost,
                self.caller.priority,
                gateway.settings.admission.deadline_s,
                arrived=work.arrived,
            )
        )
        gateway.metrics.queue_seconds.observe(slot.waited_s)
        gateway.retries.count_request()
        return await self._send(cost)

    async def _pay(self, estimate: Cost) -> None:
        cost = self.work.cost
        self._charge = await self.gateway.identity.charge(self.caller, estimate)
        if self._charge is not None:
            self.stack.enter_context(self._charge)
            self.ratelimit = charging.headers(self._charge.standings)
        m, tenant = self.gateway.metrics, self.gateway.metrics.tenant(self.caller.tenant)
        m.prompt_tokens.labels(tenant).inc(cost.tokens)
        m.image_tokens.labels(tenant).inc(estimate.image_tokens)
        m.images.labels(tenant).inc(len(cost.image_tokens))

    async def _send(self, cost: Cost) -> Response:
        work, gateway = self.work, self.gateway
        total = work.cost.tokens + work.output_tokens
        attempt, last, failed = self.stack, None, frozenset[str]()
        while True:
            request = RequestView(work.model, cost.weight, total, work.prompt.key, failed)
            replica = gateway.fleet.choose(work.prompt, request)
            if last is not None:
                if replica is None or not gateway.retries.try_spend():
                    return _outcome(last)
                gateway.metrics.retries.inc()
                await attempt.aclose()
            if replica is None:
                return _outcome(None)
            attempt = await self.stack.enter_async_context(AsyncExitStack())
            last = await self._try(replica, request, attempt)
            if not (last.status in _ANOTHER_MAY_DO if isinstance(last, Response) else last.may_retry):
                return _outcome(last)
            failed |= {replica.url}

    async def _try(self, replica: Replica, request: RequestView, attempt: AsyncExitStack) -> Response | UpstreamError:
        call = attempt.enter_context(replica.serving(self.work.prompt, request))
        try:
            response = await attempt.enter_async_context(
                self.gateway.upstream.open(
                    replica.url, self.work.path, self.work.body, self._headers(), timeouts=self._timeouts()
                )
            )
        except UpstreamError as error:
            call.failed()
            return error
        if response.status >= 500:
            call.failed()
        self._call = call
        return response

    def _timeouts(self) -> Timeouts:
        """An engine is silent until its whole answer is done, where it does not stream."""
        limits = timeouts(self.gateway.settings)
        return limits if self.work.stream else replace(limits, first_byte_s=limits.total_s)

    def _headers(self) -> dict[str, str]:
        passed = {name: self.work.headers[name] for name in _PASSED_ON if name in self.work.headers}
        accept = "text/event-stream" if self.work.stream else "application/json"
        return {"content-type": "application/json", "accept": accept, **passed, **engine_headers(self.gateway.settings)}

    async def read(self, response: Response) -> bytes:
        """The whole answer of a request that does not stream."""
        assert self._call is not None
        try:
            data = await response.read()
        except UpstreamError:
            self._call.failed()
            raise
        if response.status < 500:
            self._call.succeeded()
        if response.status == 200:
            try:
                told = msgspec.json.decode(data, type=Answered).usage
            except (msgspec.DecodeError, msgspec.ValidationError):
                told = None
            self._settle(self._usage(told))
        return data

    async def frames(self, response: Response) -> AsyncGenerator[bytes, None]:
        """The answer of a request that streams, as it comes."""
        keep_alive = self.gateway.settings.stream.keep_alive_s
        chunks: AsyncIterator[bytes] = self._renamed(response)
        stream = relay(
            chunks,
            keep_alive_s=keep_alive,
            clock=time.monotonic,
            observe=self._observe,
            dialect=self.work.dialect,
        )
        async with aclosing(stream):
            async for part in stream:
                yield part

    async def _renamed(self, response: Response) -> AsyncGenerator[bytes, None]:
        async for chunk in response.chunks:
            yield self.renamed(chunk)

    def renamed(self, data: bytes) -> bytes:
        if not self.work.dialect.renames_thoughts:
            return data
        return rename_thoughts(data, self.gateway.settings.policy.reasoning_field)

    def _observe(self, seen: Observation) -> None:
        assert self._call is not None
        m = self.gateway.metrics
        if seen.outcome == "complete":
            self._call.succeeded()
        elif seen.outcome == "failed":
            self._call.failed()
            m.broken_streams.labels(seen.error or "upstream_error").inc()
        else:
            m.left.inc()
        if seen.first_at is not None:
            m.ttft_seconds.observe(seen.first_at - self.work.arrived)
        if seen.mean_gap_s is not None:
            m.gap_seconds.observe(seen.mean_gap_s)
        self._settle(self._usage(seen.usage) or Usage(self.work.cost.tokens, seen.content_frames))

    def _usage(self, told: Mapping[str, object] | None) -> Usage | None:
        if told is None:
            return None
        try:
            return msgspec.convert(self.work.dialect.counted(told), Usage)
        except (msgspec.ValidationError, TypeError):
            return None

    def _settle(self, usage: Usage | None) -> None:
        """What was used takes the place of what was estimated."""
        m, cost = self.gateway.metrics, self.work.cost
        usage = usage or Usage(cost.tokens, self.work.output_tokens)
        m.completion_tokens.labels(m.tenant(self.caller.tenant)).inc(usage.completion_tokens)
        if usage.prompt_tokens != cost.tokens:
            m.miscounted.inc()
        if self._charge is not None:
            estimate = self.work.estimate
            text = usage.prompt_tokens - estimate.image_tokens
            self._charge.settle(replace(estimate, text_tokens=text, output_tokens=usage.completion_tokens))


def rename_thoughts(data: bytes, name: str) -> bytes:
    """vLLM 0.32 calls thoughts `reasoning`. A quote inside a JSON string is escaped, so this meets keys only."""
    if name == "reasoning" or b'"reasoning":' not in data:
        return data
    return data.replace(b'"reasoning":', b'"reasoning_content":')


def _outcome(last: ApiError | Response | None) -> Response:
    if last is None:
        raise ApiError("no_replica", "no engine that serves this model is ready; retry later", retry_after=5.0)
    if isinstance(last, ApiError):
        raise last
    return last
